"""What it costs to start a trial: Tune's documented pattern against lanes, on the same trials, in one run.

Documented pattern (Ray's guide "Hyperparameter tuning with Ray Tune" for Train): a Tune function that builds a new
TorchTrainer for each trial. Lanes: `sweeps.lanes.lane_trainable.LaneTrainable`, as a sweep uses it. Both train the same
tiny model for the same three optimizer steps and evaluate it once, so what differs is the start.

    python tests/benchmarks/trial_start.py [--quick]

Seconds a trial are the time between the ends of two trials that follow one another; the first trial of a lane, which
starts its workers, is a column of its own.

A last line says how soon a lane is free that early stopping takes a trial from: from the scheduler's decision until the
next trial has started on it. The trials for this have optimizer steps of seconds, and are stopped in the middle of one.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from core.distributed.workers import Workers
from core.settings.run_config import RunConfig
from core.training.training_run import run_training
from data_pipeline.preparation.prepare import prepare
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.token_blocks import open_prepared
from sweeps.lanes.lane_spec import LaneSpec
from sweeps.lanes.lane_trainable import LaneTrainable
from sweeps.lanes.mailbox import Assignment
from sweeps.lanes.ray_session import connect

BATCH_SIZE = 4
SEQUENCE_LENGTH = 32
STEPS = 3
LONG_STEP_ROWS = 2048
"""In micro-batches of `BATCH_SIZE`: a step of seconds."""


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one worker, few trials: a smoke check")
    arguments = parser.parse_args()
    worker_counts = (1,) if arguments.quick else (1, 2)
    documented_trials, lane_trials = (1, 5) if arguments.quick else (5, 40)
    connect()
    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_corpus(Path(folder))
        print(
            f"{'workers':>7} {'documented':>12} {'lane, first':>12} {'lane, after':>12} {'ratio':>8}   seconds a trial"
        )
        ratios = {}
        for workers in worker_counts:
            documented = statistics.median(documented_pattern(prepared, Path(folder), workers, documented_trials))
            first, *others = seconds_a_trial(lanes(prepared, Path(folder), workers, lane_trials))
            after = statistics.median(others)
            ratios[f"{workers}_workers"] = round(documented / after, 1)
            print(f"{workers:>7} {documented:>12.2f} {first:>12.2f} {after:>12.3f} {documented / after:>7.0f}x")
        freed = stopped(prepared, Path(folder), 3 if arguments.quick else 20)
        step_s = seconds_of_a_long_step(prepared, Path(folder))
        median_s, longest_s = statistics.median(freed), max(freed)
        print(
            f"a lane is free {median_s:.3f} s after its trial was stopped, {longest_s:.3f} s at most of {len(freed)}; "
            f"a step takes {step_s:.2f} s"
        )
    ray.shutdown()
    figures = {
        "stopped_to_next_start_s": round(median_s, 3),
        "stopped_to_next_start_longest_s": round(longest_s, 3),
        "step_s": round(step_s, 2),
    }
    print(json.dumps({"benchmark": "trial_start", "ratios": ratios, "figures": figures, "quick": arguments.quick}))


def prepare_corpus(folder: Path) -> Path:
    """Token blocks of a small text."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"line {number} of a small text that needs no download" for number in range(2000)))
    data = prepare(
        CorpusConfig(path=str(text), holdout=0.02),
        TokenizerConfig(vocabulary=400),
        PackingConfig(sequence_length=SEQUENCE_LENGTH),
        prepared_folder=folder / "prepared",
    )
    return data.folder


def tiny_run(learning_rate: float, *, batch_size: int = BATCH_SIZE) -> RunConfig:
    """Three steps of a model with one layer."""
    return RunConfig.model_validate(
        {
            "model": {"layers": 1, "width": 16, "heads": 1, "sequence_length": SEQUENCE_LENGTH},
            "objective": "masked_lm",
            "training": {
                "batch_size": batch_size,
                "micro_batch_size": BATCH_SIZE,
                "tokens": batch_size * SEQUENCE_LENGTH * STEPS,
                "learning_rate": learning_rate,
            },
        }
    )


def documented_pattern(prepared: Path, folder: Path, workers: int, num_trials: int) -> list[float]:
    """Seconds of each trial, a new TorchTrainer each."""

    def train(config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        run_training(
            tiny_run(config["trial"]["learning_rate"]),
            open_prepared(prepared),
            workers=Workers(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()),
            folder=Path(tempfile.mkdtemp()),
            report=lambda _: True,
            evaluate_at_tokens=(),
        )
        ray.train.report({"done": 1})

    def trial(config: dict[str, Any]) -> None:
        ray.train.torch.TorchTrainer(
            train,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=workers),
            run_config=ray.train.RunConfig(name=f"{os.getpid()}-{time.time_ns()}", storage_path=str(folder / "train")),
        ).fit()

    # The function's own processor share is none, as Ray's guide does it, so that the workers get all of them.
    trainable = tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": 1}]))
    return seconds_a_trial(_run_trials(trainable, folder, num_trials))


def seconds_a_trial(clock: "_Clock") -> list[float]:
    """From the end of one to the end of the next; of the first one from the beginning of all."""
    return [end - start for start, end in itertools.pairwise(clock.ended_at)]


def stopped(prepared: Path, folder: Path, num_trials: int) -> list[float]:
    """Seconds from the decision to stop a trial to the start of the next one on its lane."""
    clock = lanes(prepared, folder, 1, num_trials + 1, batch_size=LONG_STEP_ROWS, scheduler=_StopsAtTheFirstReport())
    return [start - decided for decided, start in zip(clock.decided_at, clock.started_at[1:], strict=False)]


def seconds_of_a_long_step(prepared: Path, folder: Path) -> float:
    """Of the trials that are stopped, in this process with as many threads as a worker of theirs has."""
    reports: list[dict[str, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_training(
        tiny_run(1e-3, batch_size=LONG_STEP_ROWS),
        open_prepared(prepared),
        workers=Workers(),
        folder=folder / "step",
        report=lambda report: reports.append(report) or True,  # type: ignore[func-returns-value]
        evaluate_at_tokens=(),
    )
    torch.set_num_threads(threads)
    return reports[-1]["training_s"] / STEPS


def lanes(
    prepared: Path,
    folder: Path,
    workers: int,
    num_trials: int,
    *,
    batch_size: int = BATCH_SIZE,
    scheduler: TrialScheduler | None = None,
) -> "_Clock":
    """Trials one after another on one lane; the first one starts its workers."""
    lane = LaneSpec(
        workers=workers,
        use_gpu=False,
        threads_per_worker=1,
        cpus_per_worker=1,
        gpus_per_worker=0,
        storage_folder=str(folder / "lanes"),
        environment={},
        worker_deadline_s=600.0,
    )

    class Numbered(LaneTrainable):
        """Gives each trial a folder of its own: Tune's grid knows nothing of assignments."""

        def setup(self, config: dict[str, Any]) -> None:
            super().setup(self._with_assignment(config["trial"]))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return super().reset_config(self._with_assignment(new_config["trial"]))

        def _with_assignment(self, config: dict[str, Any]) -> dict[str, Any]:
            assignment = Assignment(
                number=config["number"],
                run=tiny_run(config["learning_rate"], batch_size=batch_size).model_dump(mode="json"),
                prepared_folder=str(prepared),
                trial_folder=tempfile.mkdtemp(),
                evaluate_at_tokens=(),
                pause=None,
                memory_limit_bytes=None,
                memory_limit_by="counting",
            )
            return {"number": config["number"], "assignment": assignment, "lane": lane}

    trainable = tune.with_resources(Numbered, tune.PlacementGroupFactory([{"memory": 1}]))
    return _run_trials(trainable, folder, num_trials, reuse_actors=True, scheduler=scheduler)


class _Clock(tune.Callback):
    def __init__(self) -> None:
        self.started_at: list[float] = []
        self.decided_at: list[float] = []
        """When the scheduler stopped a trial."""
        self.ended_at = [time.perf_counter()]

    def on_trial_start(self, *_: Any, **__: Any) -> None:
        self.started_at.append(time.perf_counter())

    def on_trial_result(self, *_: Any, result: dict[str, Any], **__: Any) -> None:
        # Tune asks the scheduler, then marks the result, then tells this; the trial is stopped after that.
        if result["done"] and "outcome" not in result:
            self.decided_at.append(time.perf_counter())

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self.ended_at.append(time.perf_counter())


class _StopsAtTheFirstReport(FIFOScheduler):
    """The worker does not wait for a decision on a report without an evaluation: it is in its next step."""

    def on_trial_result(self, *_: Any, **__: Any) -> str:
        return str(TrialScheduler.STOP)


def _run_trials(
    trainable: Any,
    folder: Path,
    num_trials: int,
    *,
    reuse_actors: bool = False,
    scheduler: TrialScheduler | None = None,
) -> _Clock:
    clock = _Clock()
    numbers = [{"number": number, "learning_rate": 1e-3 * number} for number in range(1, num_trials + 1)]
    results = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(numbers)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=reuse_actors, scheduler=scheduler),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            callbacks=[clock],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    return clock


if __name__ == "__main__":
    main()
