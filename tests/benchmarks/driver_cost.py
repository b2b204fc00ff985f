"""What a trial costs the driver: a thousand trials that take no time themselves, through the real sweep.

Searcher, ledger, records on disk, scheduler, MLflow on SQLite, trials.csv and report are those of `pretune sweep`; only
the lane is a stub whose workers answer at once. Printed are milliseconds of the driver's processor time a trial, over
the first hundred trials and the last, part by part, and how much memory the driver grew after the first hundred.

    python tests/benchmarks/driver_cost.py [--quick]

"driver" is everything in the driver's process, Ray's own threads included, but for two columns. The searcher: TPE looks
at all trials there are for each proposal, by its nature. Predicting: the memory of a model's shape and masking rate is
traced once, which takes some tenths of a second however short the trials are. MLflow is sent to by a thread of its own,
in part after the trials, so its figure is that of the whole sweep. With trunk-and-branch a trial comes in several legs,
each of which Tune takes for a trial.
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

from core.settings.cooldown_branch import Branch
from core.training.run_end import RunEnd
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.execution import tune_run as sweep_room
from sweeps.execution.run_sweep import run_sweep
from sweeps.execution.running_results import RunningResults
from sweeps.lanes.library_logs import log_libraries_in
from sweeps.lanes.mailbox import Assignment
from sweeps.planning.sweep_plan import SweepPlan
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.search.ledger import Ledger
from sweeps.search.sweep_searcher import SettingsSampler
from sweeps.settings.sweep_config import SweepConfig
from sweeps.tracking.mlflow_tracking import Tracking

TRIALS = 1000
QUICK_TRIALS = 60
TOKENS = 1_000_000
"""Of each trial."""
_SWEEPS = (("random", "asha"), ("tpe", "asha"), ("random", "trunk-and-branch"))
"""Searcher and early stopping."""
_PARTS: dict[str, list[tuple[type, str]]] = {
    "searcher": [(SettingsSampler, "propose"), (SettingsSampler, "ended")],
    "predicting": [(SweepPlan, "_predict")],
    "MLflow": [(Tracking, "_send")],
    "tables": [(RunningResults, "_write")],
    "records": [(TrialStore, "save"), (TrialStore, "append_report")],
    "stopping": [(TokenScheduler, "on_trial_result")],
}


def sweep_of(method: str, stopping: str, num_trials: int) -> SweepConfig:
    """A space in which no two proposals are equal."""
    return SweepConfig.model_validate(
        {
            "name": f"driver-{method}-{stopping}",
            "corpus": {"builtin": "python-docs", "holdout": "5%"},
            "tokenizer": {"kind": "byte-bpe", "vocabulary": 1000},
            "model": {"layers": 1, "width": 32, "heads": 2, "sequence_length": 32},
            "objective": {"masked_lm": {}},
            "search": {
                "training.learning_rate": {"log_uniform": [1e-4, 1e-2]},
                "training.weight_decay": {"uniform": [0.0, 0.3]},
                "objective.masked_lm.masking_rate": {"uniform": [0.1, 0.5]},
                "training.batch_size": {"choice": [16, 32]},
            },
            "training": {"micro_batch_size": 8},
            "searcher": {"method": method},
            "early_stopping": {"method": stopping},
            "repeats": {"trials": 0},
            "budget": {"trials": num_trials, "tokens_per_trial": TOKENS},
            "resources": {"concurrent_trials": 1},
        }
    )


class AnswersAtOnce(tune.Trainable):
    """A lane in Tune's terms whose workers take no time: three evaluations on the way, pauses, then the end."""

    def setup(self, config: dict[str, Any]) -> None:
        """The first trial."""
        self._reached: dict[int, int] = {}
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial."""
        assignment: Assignment = new_config["assignment"]
        training = assignment.run["training"]
        self._loss = 3.0 + abs(training["learning_rate"] - 2e-3) * 100 + training["weight_decay"]
        self._number, self._pause = assignment.number, assignment.pause
        return True

    def step(self) -> dict[str, Any]:
        """The next evaluation, the pause, or the end."""
        tokens = self._reached.get(self._number, 0)
        if self._pause is not None and tokens >= self._pause.at_tokens:
            metrics = {LOSS: self._loss + 1e5 / tokens}
            branch = Branch(metrics, self._pause.cooldown_tokens, 0.1)
            end = RunEnd("paused", "paused", metrics, tokens, 8, 1000, branch=branch)
            return {"done": True, "paused_at": self._pause.at_tokens, "end": end, "interruptions": 0}
        if tokens >= TOKENS:
            return {"done": True, "outcome": "COMPLETED", "reason": "trained", "end": None, "interruptions": 0}
        tokens = self._reached[self._number] = tokens + TOKENS // 3 + 1
        report = {"tokens": tokens, LOSS: self._loss + 1e5 / tokens, "training_s": 1.0, "step": 1}
        return {"report": report, "done": False} | report


@dataclass(frozen=True)
class Snapshot:
    """The driver as it opens a trial."""

    cpu_s: float
    wall_s: float
    rss_bytes: int
    parts_s: Counter[str]


def measure(sweep: SweepConfig, results: Path) -> list[Snapshot]:
    """Run a sweep; the driver at the beginning of each trial, and at the end."""
    spent: Counter[str] = Counter()
    snapshots: list[Snapshot] = []
    process = psutil.Process()
    undo = [_timed(owner, name, spent, part) for part, functions in _PARTS.items() for owner, name in functions]
    begin = Ledger.open

    def look() -> None:
        rss = process.memory_info().rss
        snapshots.append(Snapshot(time.process_time(), time.perf_counter(), rss, Counter(spent)))

    def look_and_open(self: Ledger, *arguments: Any, **more: Any) -> Any:
        look()
        return begin(self, *arguments, **more)

    Ledger.open = look_and_open  # type: ignore[method-assign]
    lane = sweep_room.LaneTrainable
    sweep_room.LaneTrainable = AnswersAtOnce  # type: ignore[misc, assignment]
    try:
        log_libraries_in(results)
        run_sweep(sweep, results_folder=results, console=Console(file=io.StringIO(), width=160))
    finally:
        sweep_room.LaneTrainable = lane  # type: ignore[misc]
        Ledger.open = begin  # type: ignore[method-assign]
        for restore in undo:
            restore()
    assert len(snapshots) == sweep.budget.trials
    look()
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
    """Processor time of the driver a trial from one trial to a later one, in all and by part, and time on the wall."""
    first, last, count = snapshots[start], snapshots[stop], stop - start
    cost = {"all": 1000 * (last.cpu_s - first.cpu_s) / count}
    for part in _PARTS:
        cost[part] = 1000 * (last.parts_s[part] - first.parts_s[part]) / count
    # Sent by a thread of its own, in part after the trials: what counts is the whole sweep.
    whole = 1000 * snapshots[-1].parts_s["MLflow"] / (len(snapshots) - 1)
    cost["driver"] = cost["all"] - cost["searcher"] - cost["predicting"] - cost["MLflow"] + whole
    cost["MLflow"] = whole
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
    columns = ("driver", *_PARTS, "wall")
    print(f"driver's processor time, ms a trial, of {num_trials} trials")
    print(f"{'':<26}{'trials':<12}" + "".join(f"{name:>11}" for name in columns))
    with tempfile.TemporaryDirectory(prefix="driver-cost-") as folder:
        for method, stopping in _SWEEPS:
            name = f"{method}, {stopping}"
            snapshots = measure(sweep_of(method, stopping, num_trials), Path(folder))
            # The first trial waits for the first lane's process.
            windows = {"first": (0, window), "last": (num_trials - 1 - window, num_trials - 1)}
            costs = {when: ms_per_trial(snapshots, *bounds) for when, bounds in windows.items()}
            for when, cost in costs.items():
                print(f"{name:<26}{when + f' {window}':<12}" + "".join(f"{cost[c]:>11.2f}" for c in columns))
                figures |= {f"{name}, {when}: {column}_ms": round(cost[column], 2) for column in columns}
            grown = (snapshots[-2].rss_bytes - snapshots[window].rss_bytes) / 2**20
            print(f"{name:<26}memory {snapshots[window].rss_bytes / 2**20:.0f} MiB, grown by {grown:.1f} MiB since")
            ratios[f"{name}, last_to_first"] = round(costs["last"]["driver"] / costs["first"]["driver"], 2)
            figures[f"{name}: grown_mib"] = round(grown, 1)
    print(json.dumps({"benchmark": "driver_cost", "ratios": ratios, "figures": figures, "quick": arguments.quick}))


if __name__ == "__main__":
    main()
