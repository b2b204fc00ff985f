"""MLflow by requests of its client against the writer of its tables, on a thousand trials in a SQLite file.

    python tests/benchmarks/mlflow_writer.py [--quick]

Printed are milliseconds of the driver's processor time a trial, medians over blocks of the first hundred trials and of
the last; the blocks of both ways take turns, each way in a file of its own. The trials between are brought by the
writer in both files: the rows are the same. Records alone drive `Tracking`, without Ray; its outbox's thread is left
out, so that a block's time holds all that its trials cost.

instant: trials as those of driver_cost.py, a block of them delivered at once, each whole in one change.
lifelike: trials that take longer than the outbox waits: the start, three reports of a dozen metrics together, and the
end are three deliveries of one trial each.
rank: what the end of the sweep adds to each of its trials.

20 ms a trial is what the driver may take in all; driver_cost.py has the other parts of it.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag

from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.tracking.mlflow_runs import SendsRequests, WritesTables
from sweeps.tracking.mlflow_store import MlflowStore
from sweeps.tracking.mlflow_tracking import Tracking

TRIALS, WINDOW, BLOCK = 1000, 100, 20
QUICK_TRIALS, QUICK_WINDOW, QUICK_BLOCK = 30, 10, 5
TOKENS = 1_000_000
"""Of each trial."""
REPORTS = 3
"""Of each trial."""
WAYS = ("requests", "writer")
KINDS = ("instant", "lifelike")
_TRAINED_METRICS = (
    "train/loss_nats_per_token", "train/learning_rate", "train/gradient_norm", "train/tokens_per_s",
    "profile/forward_ms", "profile/backward_ms", "profile/optimizer_ms", "profile/share_of_matmul_rate",
    "holdout/accuracy",
)  # fmt: skip
_STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


class SendsAtOnce:
    """An outbox without a thread: the caller sends the keys."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._due: dict[Hashable, None] = {}

    def put(self, key: Hashable, **_: bool) -> None:
        """Have this sent by the next `deliver`."""
        self._due[key] = None

    def deliver(self) -> None:
        """Send what is due."""
        due, self._due = list(self._due), {}
        self._tracking._send(due)

    def close(self) -> dict[Hashable, str]:
        """Send what is due; nothing is refused."""
        self.deliver()
        return {}


@dataclass
class Sweep:
    """One sweep in a SQLite file of its own."""

    tracking: Tracking
    outbox: SendsAtOnce
    writers: dict[str, SendsRequests | WritesTables]
    kind: str

    def take(self, way: str, numbers: range) -> float:
        """Bring these trials to MLflow; milliseconds of processor time a trial."""
        self.tracking._writer = self.writers[way]
        records = [_started(number) for number in numbers]
        began = time.process_time()
        for record in records:
            self.tracking.on_event("started", record, None)
            self._deliver_if_lifelike()
            for report in range(1, REPORTS + 1):
                self.tracking.on_event("report", record, _report(record, report, is_long=self.kind == "lifelike"))
            self._deliver_if_lifelike()
            self.tracking.on_event("ended", _ended(record), None)
            self._deliver_if_lifelike()
        if self.kind == "instant":
            self.outbox.deliver()
        return 1000 * (time.process_time() - began) / len(numbers)

    def rank(self, way: str, num_trials: int, folder: Path) -> float:
        """End the sweep; milliseconds of processor time a trial."""
        self.tracking._writer = self.writers[way]
        records = [_ended(_started(number)) for number in range(1, num_trials + 1)]
        began = time.process_time()
        self.tracking.finish(status="stopped", records=records, folder=folder)
        return 1000 * (time.process_time() - began) / num_trials

    def _deliver_if_lifelike(self) -> None:
        if self.kind == "lifelike":
            self.outbox.deliver()


def opened(template: Path, folder: Path, kind: str) -> Sweep:
    """A sweep whose store is a copy of an empty one."""
    folder.mkdir()
    shutil.copy(template / "mlflow.db", folder / "mlflow.db")
    tracking = Tracking(folder, say=print)
    table_writer = tracking._writer
    assert isinstance(table_writer, WritesTables), "the writer does not know this version of MLflow"
    datasets = [
        DatasetInput(Dataset(f"corpus {name}", "digest", "local", "{}"), [InputTag("mlflow.data.context", name)])
        for name in ("training", "evaluation")
    ]
    source = {"mlflow.source.name": "pretune sweep sweep.yaml", "mlflow.source.git.commit": "0" * 40}
    tracking.start(
        name=kind, identity=kind, tags={}, params={}, store=TrialStore(folder / "trials"), source=source,
        datasets=datasets,
    )  # fmt: skip
    assert tracking._outbox is not None
    tracking._outbox.close()
    outbox = SendsAtOnce(tracking)
    tracking._outbox = outbox  # type: ignore[assignment]
    requests = SendsRequests(tracking._client, tracking._experiment_id)
    return Sweep(tracking, outbox, {"requests": requests, "writer": table_writer}, kind)


def _started(number: int) -> TrialRecord:
    settings = {
        "training.learning_rate": 1e-3 + number * 1e-6,
        "training.weight_decay": 0.1,
        "objective.masked_lm.masking_rate": 0.15 + number * 1e-5,
        "training.batch_size": 32,
    }
    return TrialRecord(number=number, settings=settings, started_at=_STARTED_AT.isoformat())


def _report(record: TrialRecord, report: int, *, is_long: bool) -> dict[str, float]:
    values = {"tokens": report * TOKENS // REPORTS, LOSS: 4.0 - 0.1 * report, "training_s": 1.0 * report, "step": 1.0}
    return values | (dict.fromkeys(_TRAINED_METRICS, record.number + 0.5) if is_long else {})


def _ended(record: TrialRecord) -> TrialRecord:
    return record.model_copy(
        update={
            "outcome": Outcome.COMPLETED,
            "reason": "trained on all its tokens",
            "metrics": {LOSS: 3.7},
            "best_loss": 3.7,
            "tokens": TOKENS,
            "training_s": 3.0,
            "tokens_per_s": TOKENS / 3.0,
            "parameters": 1_000_000,
            "trainable_parameters": 1_000_000,
            "predicted_peak_memory_bytes": 2**28,
            "peak_memory_bytes": 2**28,
            "memory_limit_bytes": 2**30,
            "ended_at": (_STARTED_AT + timedelta(seconds=3)).isoformat(),
        }
    )


def measure(scratch: Path, num_trials: int, window: int, block: int) -> dict[tuple[str, str, str], float]:
    """Milliseconds a trial of each kind of trial, part of the sweep and way."""
    template = scratch / "template"
    template.mkdir()
    MlflowStore(template)
    sweeps = {(kind, way): opened(template, scratch / f"{kind}-{way}", kind) for kind in KINDS for way in WAYS}
    found: dict[tuple[str, str, str], float] = {}
    middle = range(window + 1, num_trials - window + 1)
    for part, first in (("first", 1), ("last", num_trials - window + 1)):
        if part == "last":
            for sweep in sweeps.values():
                sweep.take("writer", middle)
        costs: dict[tuple[str, str], list[float]] = {place: [] for place in sweeps}
        for turn, start in enumerate(range(first, first + window, block)):
            for place in sorted(sweeps, reverse=turn % 2 == 1):
                costs[place].append(sweeps[place].take(place[1], range(start, start + block)))
        found |= {(kind, part, way): statistics.median(values) for (kind, way), values in costs.items()}
    for way in WAYS:
        found["instant", "rank", way] = sweeps["instant", way].rank(way, num_trials, scratch / "no files")
        assert not sweeps["instant", way].tracking.not_taken
    return found


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 trials instead of a thousand")
    arguments = parser.parse_args()
    sizes = (QUICK_TRIALS, QUICK_WINDOW, QUICK_BLOCK) if arguments.quick else (TRIALS, WINDOW, BLOCK)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="mlflow-writer-") as scratch:
        found = measure(Path(scratch), *sizes)
    print(f"driver's processor time for MLflow, ms a trial, of {sizes[0]} trials")
    print(f"{'trials':<12}{'part':<12}" + "".join(f"{way:>12}" for way in WAYS) + f"{'ratio':>10}")
    ratios: dict[str, float] = {}
    for kind, part in dict.fromkeys((kind, part) for kind, part, _ in found):
        requests, writer = (found[kind, part, way] for way in WAYS)
        ratios[f"{kind}, {part}"] = round(requests / writer, 2)
        name = f"{part} {sizes[1]}" if part != "rank" else part
        print(f"{kind:<12}{name:<12}{requests:>12.2f}{writer:>12.2f}{requests / writer:>9.1f}x")
    figures = {f"{kind}, {part}, {way}_ms": round(cost, 2) for (kind, part, way), cost in found.items()}
    print(json.dumps({"benchmark": "mlflow_writer", "ratios": ratios, "figures": figures, "quick": arguments.quick}))


if __name__ == "__main__":
    main()
