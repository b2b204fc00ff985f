"""The loop of each worker of a lane: take a trial, train it, report, take the next."""

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from core.costs.micro_batch_benchmark import fastest, measure_micro_batches
from core.distributed.collective_attempt import OtherRankFailedError
from core.distributed.workers import Workers
from core.memory.host_memory import kernel_oom_kills
from core.memory.out_of_memory import classify
from core.memory.tensor_memory import SLACK_BYTES, live_tensor_bytes, settled_level_bytes
from core.model_files.checkpoint import trunk_checkpoint
from core.settings.run_config import RunConfig
from core.training.run_checks import Beginning
from core.training.run_end import RunEnd
from core.training.staged_run import run_stages
from core.training.training_run import run_training
from core.training.training_stage import Stage
from core.user_code.class_source import code_of_json
from core.user_code.code_places import UserCodeError
from core.user_code.permitted_code import OUTPUT, permit
from data_pipeline.files.machine_faults import MachineFault, machine_fault
from data_pipeline.files.own_files import OwnLog
from data_pipeline.preparation.node_copies import open_on_this_node
from data_pipeline.schema.redaction import RedactingFormatter, redact
from data_pipeline.tokens.token_blocks import PreparedCorpus, open_prepared
from sweeps.lanes.mailbox import Assignment, EndMessage, ErrorMessage, Message, ReportMessage, SpeedsMessage, Standing
from sweeps.lanes.system_metrics import SystemMetrics
from sweeps.records.remote_results import mirrored_trial
from sweeps.records.trial_records import LOSS
from sweeps.tasks.linear_probe import TaskProbes

_ENDED_BADLY = ("diverged", "infeasible")


def train_assignments(config: dict[str, Any]) -> None:
    """Train trials from the lane's mailbox until it is closed. Runs on every rank of a TorchTrainer.

    Args:
        config: `mailbox`: the lane's mailbox; `threads`: CPU threads of this worker.
    """
    mailbox = config["mailbox"]
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    workers = Workers(
        rank=context.get_world_rank(), count=context.get_world_size(), device=ray.train.torch.get_device()
    )
    corpora: dict[str, PreparedCorpus] = {}
    stops = Stops(mailbox)
    level_bytes = settled_level_bytes(workers.device)
    taken = 0
    while (assignment := ray.get(mailbox.take.remote(taken))) is not None:
        taken += 1
        here = Standing(ray.get_runtime_context().get_node_id(), kernel_oom_kills())
        mailbox.stand.remote(workers.rank, here)
        try:
            end = _train(assignment, workers, corpora, mailbox, stops.of(taken - 1))
        except OtherRankFailedError:
            raise  # That rank tells the cause, and this message could come before it.
        except Exception as error:
            # The run could not handle the error, so this process takes no further trial: report, then end the worker
            # group.
            oom = classify(error, rank=workers.rank)
            fault = None if oom is not None else _fault_of_this_machine(error, assignment)
            # The place of an error in the user's code is enough; the log has its traceback.
            words = str(error) if isinstance(error, UserCodeError) else traceback.format_exc()
            _tell(mailbox, ErrorMessage(assignment.number, redact(words), oom, fault))
            with suppress(OSError):  # The disk may be full.
                trial_log(assignment).exception("the trial failed" if fault is None else str(fault))
            raise
        is_clean = end.outcome not in _ENDED_BADLY or _is_clean(workers, level_bytes)
        if workers.is_first:
            trial_log(assignment).info("%s: %s", end.outcome, end.reason)
            _tell(mailbox, EndMessage(assignment.number, end, is_last=not is_clean))
        if not is_clean:
            return  # A new worker group replaces this one, which would have less memory for each further trial.


def _fault_of_this_machine(error: Exception, assignment: Assignment) -> MachineFault | None:
    fault = machine_fault(error, near=Path(assignment.trial_folder))
    is_elsewhere = fault is not None and not _is_on(assignment.driver_node)
    return replace(fault, host=socket.gethostname()) if fault is not None and is_elsewhere else fault


def _is_clean(workers: Workers, level_bytes: int) -> bool:
    """Whether tensor memory is back at its level before the trial, on all workers."""
    left_bytes = live_tensor_bytes(workers.device) - level_bytes
    return workers.largest(left_bytes) <= SLACK_BYTES


def _train(
    assignment: Assignment,
    workers: Workers,
    corpora: dict[str, PreparedCorpus],
    mailbox: Any,
    is_stopped: Callable[[], bool],
) -> RunEnd:
    folder = assignment.prepared_folder
    if folder not in corpora:
        corpora[folder] = _open_corpus(Path(folder), assignment.corpus_server)
    uri = assignment.mirror_uri if workers.is_first and not _is_on(assignment.driver_node) else None
    # Before the first line of the log: files of an earlier try come from there, its log too.
    with mirrored_trial(Path(assignment.trial_folder), uri):
        if workers.is_first:
            trial_log(assignment).info("starts: %s", assignment.run)
        if assignment.code is not None:
            _print_to_the_log(assignment, workers)
            permit(code_of_json(assignment.code))
        run = RunConfig.model_validate(assignment.run)
        if assignment.sizes_to_measure:
            run = _with_measured_micro_batch(run, corpora[folder], assignment, workers, mailbox)
        return trainer_of(assignment, corpora, _open_corpus)(
            run,
            corpora[folder],
            workers=workers,
            folder=Path(assignment.trial_folder),
            report=_reporter(mailbox, assignment),
            evaluate_at_tokens=assignment.evaluate_at_tokens,
            memory_limit_bytes=assignment.memory_limit_bytes,
            memory_limit_by=assignment.memory_limit_by,
            checkpoint_every_s=assignment.checkpoint_every_s,
            pause=assignment.pause,
            # `pretune train` may resume from the winner's trunk.
            keep_trunk=True,
            is_stopped=is_stopped,
            judge=_probes(assignment, run, workers),
            judge_at_tokens=assignment.judge_at_tokens,
        )


def _probes(assignment: Assignment, run: RunConfig, workers: Workers) -> TaskProbes | None:
    """The probes of the downstream tasks; only the first worker needs their rows."""
    if assignment.tasks is None:
        return None
    rows = ray.get(assignment.tasks) if workers.is_first else ()
    return TaskProbes(rows, sequence_length=run.model.sequence_length)


def _print_to_the_log(assignment: Assignment, workers: Workers) -> None:
    """Lines that code of the user prints go to the log of the trial, those of rank 0."""
    OUTPUT.handlers = trial_log(assignment).handlers if workers.is_first else [logging.NullHandler()]
    OUTPUT.setLevel(logging.INFO)
    OUTPUT.propagate = False


def _is_on(node: str) -> bool:
    return bool(ray.get_runtime_context().get_node_id() == node)


def _with_measured_micro_batch(
    run: RunConfig, data: PreparedCorpus, assignment: Assignment, workers: Workers, mailbox: Any
) -> RunConfig:
    is_automatic = run.training.micro_batch_size == "auto"
    sizes = assignment.sizes_to_measure
    speeds = measure_micro_batches(
        run,
        data,
        workers=workers,
        sizes=sizes,
        memory_limit_bytes=assignment.memory_limit_bytes,
        memory_limit_by=assignment.memory_limit_by,
        all_sizes=not is_automatic,
    )
    if workers.is_first:
        trial_log(assignment).info("micro-batches, rows/s: %s", {one.rows: one.rows_per_s for one in speeds})
        _tell(mailbox, SpeedsMessage(assignment.number, speeds))
    size = fastest(speeds, largest=max(sizes)) if is_automatic else None
    return run if size is None else run.with_overrides({"training.micro_batch_size": size})


class Stops:
    """Stop orders, received in the background: a worker checks them within a step without a remote call."""

    def __init__(self, mailbox: Any) -> None:
        self._stopped: set[int] = set()
        threading.Thread(target=self._listen, args=(mailbox,), daemon=True, name="stops").start()

    def of(self, position: int) -> Callable[[], bool]:
        """A function that returns whether the trial at this position in the order of posting must end."""
        return lambda: position in self._stopped

    def _listen(self, mailbox: Any) -> None:
        heard = 0
        try:
            while (position := ray.get(mailbox.next_stop.remote(heard))) is not None:
                self._stopped.add(position)
                heard += 1
        except RayError:
            return  # The mailbox is gone, so no further stop orders come.


def _open_corpus(folder: Path, server: Any) -> PreparedCorpus:
    return open_prepared(folder) if server is None else open_on_this_node(folder, server)


def _reporter(mailbox: Any, assignment: Assignment) -> Callable[[dict[str, float]], bool]:
    machine = SystemMetrics()

    def report(values: dict[str, float]) -> bool:
        is_evaluation = LOSS in values
        trial_log(assignment).info(" ".join(f"{name}={value:.6g}" for name, value in values.items()))
        return _tell(mailbox, ReportMessage(assignment.number, values | machine.read()), wait=is_evaluation)

    return report


def _tell(mailbox: Any, message: Message, *, wait: bool = False) -> bool:
    """Hand a message to the driver, which may wait for its decision. Returns whether the trial is to continue."""
    return bool(ray.get(mailbox.tell.remote(message, wait=wait)))


def trial_log(assignment: Assignment) -> logging.Logger:
    """Logger of the trial's own log file, opened once."""
    logger = logging.getLogger(f"pretune.{assignment.trial_folder}")
    if not logger.handlers:
        # On another node than the driver's, this line is the first to need the folder.
        Path(assignment.trial_folder).mkdir(parents=True, exist_ok=True)
        handler = OwnLog(Path(assignment.trial_folder) / "log.txt", encoding="utf-8")
        formatter = RedactingFormatter("%(asctime)sZ %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def trainer_of(
    assignment: Assignment,
    corpora: dict[str, PreparedCorpus],
    open_corpus: Callable[[Path, Any], PreparedCorpus],
) -> Callable[..., RunEnd]:
    """`run_training` for this trial, or a function with the same arguments that trains its stages.

    Args:
        corpora: Open corpora by folder; newly opened ones are added.
        open_corpus: Opens the corpus in a folder, through the server of copies if there is one.
    """
    if not assignment.stages:
        trunk = None if assignment.trunk_folder is None else trunk_checkpoint(Path(assignment.trunk_folder))
        return partial(run_training, begins_with=None if trunk is None else Beginning(trunk, is_same_run=True))

    def train(_run: RunConfig, _data: PreparedCorpus, **settings: Any) -> RunEnd:
        stages = []
        for stage in assignment.stages:
            folder = stage.prepared_folder
            if folder not in corpora:
                corpora[folder] = open_corpus(Path(folder), stage.corpus_server)
            stages.append(Stage(RunConfig.model_validate(stage.run), corpora[folder]))
        return run_stages(stages, **settings)

    return train
