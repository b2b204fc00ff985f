"""What a trial costs the driver: a thousand trials that take no time themselves, through the real sweep.

Searcher, ledger, records on disk, scheduler, MLflow on SQLite, trials.csv and report are those of `pretune sweep`; only
the lane is a stub whose workers answer at once. Printed are milliseconds of the driver's processor time a trial, over
the first hundred trials and the last, part by part, and how much memory the driver grew after the first hundred.

    python tests/benchmarks/driver_cost.py [--quick]

The searcher's own time is a column of its own: TPE looks at all trials there are for each proposal, by its nature.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray import tune
from rich.console import Console

from sweeps import sweep_run as sweep_room
from sweeps.early_stopping import TokenScheduler
from sweeps.ledger import Ledger
from sweeps.running_results import RunningResults
from sweeps.searchers import SettingsSampler
from sweeps.sweep import run_sweep
from sweeps.sweep_config import SweepConfig
from sweeps.tracking import Tracking
from sweeps.trial_records import LOSS, TrialStore

TRIALS = 1000
QUICK_TRIALS = 60
_METHODS = ("random", "tpe")
_PARTS: dict[str, list[tuple[type, str]]] = {
    "searcher": [(SettingsSampler, "propose"), (SettingsSampler, "ended")],
    "MLflow": [(Tracking, "_send")],
    "tables": [(RunningResults, "_write")],
    "records": [(TrialStore, "save"), (TrialStore, "append_report")],
    "stopping": [(TokenScheduler, "on_trial_result")],
}


def sweep_of(method: str, num_trials: int) -> SweepConfig:
    """A space in which no two proposals are equal."""
    return SweepConfig.model_validate(
        {
            "name": f"driver-{method}",
            "corpus": {"builtin": "python-docs", "holdout": "5%"},
            "tokenizer": {"kind": "byte-bpe", "vocabulary": 1000},
            "model": {"layers": 1, "width": 32, "heads": 2, "sequence_length": 32},
            "objective": {"masked_lm": {}},
            "search": {
                "training.learning_rate": {"log_uniform": [1e-4, 1e-2]},
                "training.weight_decay": {"uniform": [0.0, 0.3]},
                "training.batch_size": {"choice": [16, 32]},
            },
            "training": {"micro_batch_size": 8},
            "searcher": {"method": method},
            "early_stopping": {"method": "asha"},
            "budget": {"trials": num_trials, "tokens_per_trial": "1M"},
            "resources": {"concurrent_trials": 1},
        }
    )


class AnswersAtOnce(tune.Trainable):
    """A lane in Tune's terms whose workers take no time: three evaluations, then the end."""

    def setup(self, config: dict[str, Any]) -> None:
        """The first trial."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial."""
        run = new_config["assignment"].run
        self._loss = 3.0 + abs(run["training"]["learning_rate"] - 2e-3) * 100 + run["training"]["weight_decay"]
        self._tokens = 0
        return True

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the end."""
        if self._tokens >= 1_000_000:
            return {"done": True, "outcome": "COMPLETED", "reason": "trained", "end": None, "interruptions": 0}
        self._tokens += 333_334
        report = {"tokens": self._tokens, LOSS: self._loss + 1e5 / self._tokens, "training_s": 1.0, "step": 1}
        return {"report": report, "done": False} | report


@dataclass(frozen=True)
class Snapshot:
    """The driver as a trial ends."""

    cpu_s: float
    wall_s: float
    rss_bytes: int
    parts_s: Counter[str]


def measure(method: str, num_trials: int, results: Path) -> list[Snapshot]:
    """Run a sweep; the driver at the end of each trial."""
    spent: Counter[str] = Counter()
    snapshots: list[Snapshot] = []
    process = psutil.Process()
    undo = [_timed(owner, name, spent, part) for part, functions in _PARTS.items() for owner, name in functions]
    settle = Ledger.settle

    def settle_and_look(self: Ledger, number: int, *arguments: Any, **more: Any) -> Any:
        had_ended = bool(self.records[number].ended_at)
        record = settle(self, number, *arguments, **more)
        if record.ended_at and not had_ended:
            rss = process.memory_info().rss
            snapshots.append(Snapshot(time.process_time(), time.perf_counter(), rss, Counter(spent)))
        return record

    Ledger.settle = settle_and_look  # type: ignore[method-assign]
    lane = sweep_room.LaneTrainable
    sweep_room.LaneTrainable = AnswersAtOnce  # type: ignore[misc, assignment]
    try:
        run_sweep(sweep_of(method, num_trials), results_folder=results, console=Console(file=io.StringIO(), width=160))
    finally:
        sweep_room.LaneTrainable = lane  # type: ignore[misc]
        Ledger.settle = settle  # type: ignore[method-assign]
        for restore in undo:
            restore()
    assert len(snapshots) == num_trials
    return snapshots


def _timed(owner: type, name: str, spent: Counter[str], part: str) -> Callable[[], None]:
    """Count the processor time that a method takes in its own thread."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **more: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*arguments, **more)
        finally:
            spent[part] += time.thread_time() - began

    setattr(owner, name, timed)
    return lambda: setattr(owner, name, method)


def ms_per_trial(snapshots: list[Snapshot], start: int, stop: int) -> dict[str, float]:
    """Processor time of the driver a trial between the ends of two trials, in all and by part, and time on the wall."""
    first, last, count = snapshots[start], snapshots[stop], stop - start
    cost = {"all": 1000 * (last.cpu_s - first.cpu_s) / count}
    for part in _PARTS:
        cost[part] = 1000 * (last.parts_s[part] - first.parts_s[part]) / count
    cost["ours"] = cost["all"] - cost["searcher"] - cost["MLflow"]
    cost["wall"] = 1000 * (last.wall_s - first.wall_s) / count
    return cost


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    num_trials = QUICK_TRIALS if arguments.quick else TRIALS
    window = num_trials // 10
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    columns = ("all", "ours", "searcher", "MLflow", *(part for part in _PARTS if part not in ("searcher", "MLflow")))
    print(f"driver's processor time, ms a trial, of {num_trials} trials")
    print(f"{'':<8}{'trials':<14}" + "".join(f"{name:>10}" for name in (*columns, "wall")))
    with tempfile.TemporaryDirectory(prefix="driver-cost-") as folder:
        for method in _METHODS:
            snapshots = measure(method, num_trials, Path(folder))
            # The first trial waits for the first lane's process.
            windows = {"first": (0, window), "last": (num_trials - 1 - window, num_trials - 1)}
            costs = {name: ms_per_trial(snapshots, *bounds) for name, bounds in windows.items()}
            for name, cost in costs.items():
                print(
                    f"{method:<8}{name + f' {window}':<14}" + "".join(f"{cost[c]:>10.2f}" for c in (*columns, "wall"))
                )
                figures |= {f"{method}_{name}_{column}_ms": round(cost[column], 2) for column in (*columns, "wall")}
            grown = (snapshots[-1].rss_bytes - snapshots[window].rss_bytes) / 2**20
            print(f"{method:<8}memory {snapshots[window].rss_bytes / 2**20:.0f} MiB, grown by {grown:.1f} MiB since")
            ratios[f"{method}_last_to_first"] = round(costs["last"]["ours"] / costs["first"]["ours"], 2)
            figures[f"{method}_grown_mib"] = round(grown, 1)
    print(json.dumps({"benchmark": "driver_cost", "ratios": ratios, "figures": figures, "quick": arguments.quick}))


if __name__ == "__main__":
    main()
