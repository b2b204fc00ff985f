"""How a lane tells an out-of-memory from a loss, and what becomes of the trial: real processes, stopped and short."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError
from ray.exceptions import OutOfMemoryError as NodeOutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from command import processes_marked, read_until, start
from command import run as run_command
from core.memory.out_of_memory import OomFacts, classify, corroborated
from core.memory.tensor_memory import SLACK_BYTES
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.settings.cooldown_branch import Pause
from core.settings.precision import choose_precision
from core.step.optimizer_step import UpdateOutOfMemoryError
from core.training.run_end import RunEnd
from data_pipeline.preparation.prepare import prepare
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from patience import HANGS_AFTER_S, wait_until
from sweep_examples import TINY
from sweeps.lanes import lane_worker
from sweeps.lanes.lane import (
    Lane,
    TrialFailedError,
    TrialOutOfMemoryError,
    WorkerKilledForMemoryError,
    WorkersLostError,
    _ending,
)
from sweeps.lanes.lane_spec import LaneSpec
from sweeps.lanes.lane_trainable import LaneTrainable
from sweeps.lanes.lane_worker import train_assignments
from sweeps.lanes.mailbox import Assignment, EndMessage, ReportMessage
from sweeps.lanes.ray_session import connect
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_file import load_sweep_file

VANISHED = WorkerHealthCheckFailedError("a worker", ActorDiedError())
STARVED = WorkerHealthCheckFailedError("a worker", NodeOutOfMemoryError("the node was low on memory"))
SHORT = OomFacts("device", "torch.OutOfMemoryError", "CUDA out of memory", 1024, "optimizer", 1)


@pytest.mark.parametrize(
    ("error", "kernel_kills", "kind", "words"),
    [
        (VANISHED, 0, WorkersLostError, "rank 1: WorkerHealthCheckFailedError"),
        (VANISHED, 1, WorkerKilledForMemoryError, "the kernel of the worker's node killed a process for memory"),
        (STARVED, 0, WorkersLostError, "the node ran low on memory, and Ray ended a worker"),
        (UpdateOutOfMemoryError(SHORT), 0, TrialOutOfMemoryError, "out of memory in optimizer on rank 1: CUDA out of"),
        (MemoryError(), 0, TrialOutOfMemoryError, "out of memory on rank None"),
    ],
    ids=["vanished", "killed by the kernel", "memory monitor", "out of memory in the update", "host memory"],
)
def test_what_ended_a_worker_decides_what_it_says_of_the_trial(
    error: Exception, kernel_kills: int, kind: type[Exception], words: str
) -> None:
    facts = classify(error)
    assert facts is not None
    lost = {1: error} if isinstance(error, WorkerHealthCheckFailedError) else {}
    ending = _ending(corroborated(facts, new_kernel_kills=kernel_kills), lost, "")
    assert type(ending) is kind
    assert words in str(ending)


def test_a_bug_is_a_bug_and_a_silent_worker_is_lost() -> None:
    assert type(_ending(None, {}, "Traceback ...\nKeyError: 'x'")) is TrialFailedError
    silent = _ending(None, {}, "Traceback ...\ncore.workers.WorkerSilentError: rank 0 of 2 got no answer from another")
    assert type(silent) is WorkersLostError
    assert "rank 0 of 2 got no answer" in str(silent)


class BrokenLane:
    """A lane whose trial meets one ending after another."""

    def __init__(self, *endings: Exception | ReportMessage) -> None:
        self.endings = list(endings)
        self.begun = 0

    def begin(self, _: Any) -> None:
        self.begun += 1

    def next_message(self) -> ReportMessage:
        ending = self.endings.pop(0)
        if isinstance(ending, Exception):
            raise ending
        return ending


def outcome_after(*endings: Exception | ReportMessage) -> tuple[str, int]:
    trainable = LaneTrainable.__new__(LaneTrainable)
    lane = BrokenLane(*endings)
    trainable._lane = lane  # type: ignore[assignment]
    trainable._begin(None)  # type: ignore[arg-type]
    return trainable.step().get("outcome", "continues"), lane.begun


def test_a_trial_killed_for_memory_once_is_begun_again_and_killed_twice_is_infeasible() -> None:
    killed, report = WorkerKilledForMemoryError("rank 1"), ReportMessage(1, {"tokens": 1.0})
    assert outcome_after(killed, report) == ("continues", 2)
    assert outcome_after(killed, killed) == (Outcome.INFEASIBLE, 2)
    lost = WorkersLostError("rank 1")
    assert outcome_after(killed, lost, lost) == (Outcome.INTERRUPTED, 3)
    assert outcome_after(TrialOutOfMemoryError("in optimizer")) == (Outcome.INFEASIBLE, 1)


# Whole sweeps

TWO_WORKERS = (
    TINY.partition("search:")[0]
    + """\
search: {training.learning_rate: {choice: [1e-3]}}
early_stopping: {method: none}
budget: {trials: 1, tokens_per_trial: 600k}
"""
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results folder, so that the corpus is prepared once."""
    return tmp_path_factory.mktemp("results")


def sweep_file(results: Path, name: str, *, resources: str) -> Path:
    file = results / f"{name}.yaml"
    file.write_text(
        TWO_WORKERS.replace("name: tiny", f"name: {name}") + f"resources: {{workers_per_trial: 2, {resources}}}\n"
    )
    return file


def train_workers(mark: str) -> list[psutil.Process]:
    return [worker for worker in processes_marked(mark) if "RayTrainWorker" in " ".join(worker.cmdline())]


def the_trial(results: Path, name: str) -> TrialRecord:
    (folder,) = results.glob(f"{name}-*")
    (trial,) = TrialStore(folder / "trials").load_all()
    return trial


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_is_stuck_is_noticed_and_the_trial_goes_on_with_new_ones(results: Path) -> None:
    file, mark = sweep_file(results, "stuck", resources="worker_deadline_s: 20"), f"stuck-{time.time_ns()}"
    process = start("sweep", file, "--results", results, mark=mark)
    read_until(process, "trial-0001   1")  # its first evaluation
    train_workers(mark)[1].send_signal(signal.SIGSTOP)
    output, _ = process.communicate(timeout=HANGS_AFTER_S)
    assert process.returncode == 0, output
    trial = the_trial(results, "stuck")
    assert (trial.outcome, trial.interruptions) == (Outcome.COMPLETED, 1)


@pytest.mark.ray
@pytest.mark.slow
def test_an_out_of_memory_of_rank_1_alone_costs_both_workers_a_smaller_micro_batch(results: Path) -> None:
    # Of 17 rows rank 0 has eight and rank 1 nine, and the memory is that of eight.
    file = sweep_file(results, "short", resources="memory: auto")
    sizes = ("training.batch_size=17", "training.micro_batch_size=9")
    run = load_sweep_file(file, sizes).run_config()
    of_eight, of_nine = (
        predict_memory(run, 1000, micro_batch_size=size, setup=WorkerSetup(num_workers=2)).peak_bytes for size in (8, 9)
    )
    # What the file lists is launched though it is predicted not to fit.
    listed = "start_with=[{training.learning_rate: 1e-3}]"
    changes = (*sizes, listed, f"resources.memory={of_eight + (of_nine - of_eight) // 4}")
    code, output = run_command("sweep", file, "--results", results, *(f"--set={change}" for change in changes))
    assert code == 0, output
    trial = the_trial(results, "short")
    assert (trial.outcome, trial.interruptions) == (Outcome.COMPLETED, 0)
    assert (trial.micro_batch_size_asked, trial.micro_batch_size_used) == (9, 8)
    assert trial.memory_verdict == "ran out of memory and went on"
    assert trial.reason.endswith(
        "memory ran out 1 time on the way on rank 1, so with micro-batches of 8 rows instead of 9"
    )


# A lane of its own


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Token blocks of a small text, with Ray for as long as the tests last."""
    folder = tmp_path_factory.mktemp("prepared")
    text = folder / "text.txt"
    text.write_text("\n".join(f"line {number} of a small text that needs no download" for number in range(2000)))
    connect()
    data = prepare(
        CorpusConfig(path=str(text), holdout=0.02),
        TokenizerConfig(vocabulary=400),
        PackingConfig(sequence_length=32),
        prepared_folder=folder / "prepared",
    )
    yield data.folder
    ray.shutdown()


def assignment(prepared: Path, folder: Path, number: int, pause: Pause | None = None, **training: Any) -> Assignment:
    trial = folder / f"trial-{number}"
    trial.mkdir(exist_ok=True)
    run = {
        "model": {"layers": 1, "width": 16, "heads": 1, "sequence_length": 32},
        "objective": "masked_lm",
        "training": {"batch_size": 8, "micro_batch_size": 4, "tokens": 20_000, "learning_rate": 1e-3, **training},
    }
    return Assignment(
        number=number, run=run, prepared_folder=str(prepared), trial_folder=str(trial), evaluate_at_tokens=(),
        pause=pause, memory_limit_bytes=None, memory_limit_by="counting",
    )  # fmt: skip


def one_worker(folder: Path) -> LaneSpec:
    return LaneSpec(
        workers=1, use_gpu=False, threads_per_worker=1, cpus_per_worker=1, gpus_per_worker=0.0,
        storage_folder=str(folder / "lane"),
        environment={}, worker_deadline_s=600.0,
    )  # fmt: skip


def end_of(lane: Lane) -> EndMessage:
    while not isinstance(message := lane.next_message(), EndMessage):
        pass
    return message


@pytest.mark.ray
@pytest.mark.usefixtures("prepared")
def test_workers_get_the_variables_that_limit_a_processor_and_so_compute_in_the_format_of_their_driver() -> None:
    def told() -> list[str | None]:
        limits = [os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
        return [*limits, choose_precision("auto", torch.device("cpu")).name]

    assert ray.get(ray.remote(num_cpus=0)(told).remote()) == told()


@pytest.fixture(scope="module")
def lane(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lane, float, list[EndMessage]]]:
    """A lane with its second group of workers, seconds until the first had its first trial, ends of its three trials.

    Something in the first group holds a tensor of each of its trials.
    """

    def forgetful(config: dict[str, Any]) -> None:
        held = []
        train = lane_worker._train

        def train_and_hold(*arguments: Any) -> RunEnd:
            held.append(torch.zeros(2 * SLACK_BYTES, dtype=torch.uint8))
            return train(*arguments)

        lane_worker._train = train_and_hold
        train_assignments(config)

    folder = tmp_path_factory.mktemp("lane")
    lane, began_at = Lane(one_worker(folder), name="lane"), time.monotonic()
    with mock.patch("sweeps.lanes.lane.train_assignments", forgetful):
        # A trial that ends well has nothing to be suspected of.
        lane.begin(assignment(prepared, folder, 1))
        wait_until((folder / "trial-1" / "log.txt").exists, "the trial never began")
        start_s = time.monotonic() - began_at
        ends = [end_of(lane)]
        group = lane._group
        lane.begin(assignment(prepared, folder, 2, learning_rate=1e4, schedule="constant", clip=None))
        assert lane._group is group
        ends.append(end_of(lane))
        assert lane._group is None
    lane.begin(assignment(prepared, folder, 3))
    ends.append(end_of(lane))
    yield lane, start_s, ends
    lane.close()


@pytest.mark.ray
def test_workers_that_a_bad_end_leaves_with_less_memory_are_replaced_and_the_lane_continues(
    lane: tuple[Lane, float, list[EndMessage]],
) -> None:
    _, _, ends = lane
    outcomes = [(one.end.outcome, one.is_last) for one in ends]
    assert outcomes == [("completed", False), ("diverged", True), ("completed", False)]


@pytest.mark.ray
def test_lane_is_free_while_a_step_still_runs_and_clean_after_a_bad_end(
    lane: tuple[Lane, float, list[EndMessage]], prepared: Path, tmp_path: Path
) -> None:
    free, start_s, _ = lane
    # One step of this trial takes minutes: 400,000 rows, four at a time.
    free.begin(assignment(prepared, tmp_path, 1, batch_size=400_000, tokens=10**9))
    log = tmp_path / "trial-1" / "log.txt"
    wait_until(log.exists, "the trial never began")
    time.sleep(2.0)
    stopped_at = time.monotonic()
    free.stop_current()
    took_s = time.monotonic() - stopped_at
    # Not one step was waited for. A micro-batch and a message take a hundredth of the start of a new worker group.
    assert "stopped by the caller after 0 tokens, before the next report" in log.read_text()
    assert took_s < start_s, f"the lane was free after {took_s:.1f} s"
    group = free._group
    free.begin(assignment(prepared, tmp_path, 2, learning_rate=1e4, schedule="constant", clip=None))
    diverged = end_of(free)
    assert (diverged.end.outcome, diverged.is_last) == ("diverged", False)
    # The same trial in two legs, on the same workers.
    for pause, outcome in ((Pause(10_000, 1500), "paused"), (None, "completed")):
        free.begin(assignment(prepared, tmp_path, 3, pause))
        assert end_of(free).end.outcome == outcome
    assert free._group is group
