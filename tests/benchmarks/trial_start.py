"""What it costs to start a trial: Tune's documented pattern against lanes, on the same trials, in one run.

Documented pattern (Ray's guide "Hyperparameter tuning with Ray Tune" for Train): a Tune function that builds a new
TorchTrainer for each trial. Lanes: `sweeps.trial.LaneTrainable`, as a sweep uses it. Both train the same tiny model for
the same three optimizer steps and evaluate it once, so what differs is the start.

    python tests/benchmarks/trial_start.py [--quick]

Seconds a trial are the time between the ends of two trials that follow one another; the first trial of a lane, which
starts its workers, is a column of its own.
"""

import argparse
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
from ray import tune

from core.run_config import RunConfig
from core.training_run import run_training
from core.workers import Workers
from data_pipeline.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.prepare import prepare
from data_pipeline.token_blocks import open_prepared
from sweeps.cluster import connect
from sweeps.lane import LaneSpec
from sweeps.mailbox import Assignment
from sweeps.trial import LaneTrainable

BATCH_SIZE = 4
SEQUENCE_LENGTH = 32
STEPS = 3


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
            first, *others = lanes(prepared, Path(folder), workers, lane_trials)
            after = statistics.median(others)
            ratios[f"{workers}_workers"] = round(documented / after, 1)
            print(f"{workers:>7} {documented:>12.2f} {first:>12.2f} {after:>12.3f} {documented / after:>7.0f}x")
    ray.shutdown()
    print(json.dumps({"benchmark": "trial_start", "ratios": ratios, "quick": arguments.quick}))


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


def tiny_run(learning_rate: float) -> RunConfig:
    """Three steps of a model with one layer."""
    return RunConfig.model_validate(
        {
            "model": {"layers": 1, "width": 16, "heads": 1, "sequence_length": SEQUENCE_LENGTH},
            "objective": "masked_lm",
            "training": {
                "batch_size": BATCH_SIZE,
                "micro_batch_size": BATCH_SIZE,
                "tokens": BATCH_SIZE * SEQUENCE_LENGTH * STEPS,
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
    return _run_trials(tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": 1}])), folder, num_trials, {})


def lanes(prepared: Path, folder: Path, workers: int, num_trials: int) -> list[float]:
    """Seconds of each trial on one lane; the first one starts its workers."""
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
                run=tiny_run(config["learning_rate"]).model_dump(mode="json"),
                prepared_folder=str(prepared),
                trial_folder=tempfile.mkdtemp(),
                evaluate_at_tokens=(),
                pause=None,
                memory_limit_bytes=None,
                memory_limit_by="counting",
            )
            return {"number": config["number"], "assignment": assignment, "lane": lane}

    trainable = tune.with_resources(Numbered, tune.PlacementGroupFactory([{"memory": 1}]))
    return _run_trials(trainable, folder, num_trials, {"reuse_actors": True})


class _Clock(tune.Callback):
    def __init__(self) -> None:
        self.ended_at = [time.perf_counter()]

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self.ended_at.append(time.perf_counter())


def _run_trials(trainable: Any, folder: Path, num_trials: int, options: dict[str, Any]) -> list[float]:
    clock = _Clock()
    numbers = [{"number": number, "learning_rate": 1e-3 * number} for number in range(1, num_trials + 1)]
    results = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(numbers)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, **options),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            callbacks=[clock],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    return [end - start for start, end in zip(clock.ended_at, clock.ended_at[1:], strict=False)]


if __name__ == "__main__":
    main()
