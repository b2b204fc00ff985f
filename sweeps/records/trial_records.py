"""Records of the trials on disk: one folder per trial, written as events happen.

These files are the single source for everything else: tables, MLflow, reports, a resumed search. An atomic rename
replaces `trial.json` whole; `reports.jsonl` only grows. A copy beside `trial.json` is read if a disk or another program
damages that file.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from data_pipeline.files.own_files import make_folder
from data_pipeline.files.whole_files import append_line, write_atomically
from data_pipeline.schema.settings import Settings
from data_pipeline.schema.user_errors import InputFault
from sweeps.records.outcomes import Outcome
from sweeps.settings.metric_config import BY_LOSS, HOLDOUT_LOSS, Metric

LOSS = HOLDOUT_LOSS
"""Metric that drives early stopping, and ranks trials unless the sweep file names another."""
EVALUATED = ("holdout/", "task/")
"""Beginnings of the names of metrics that come from an evaluation."""
HOLDOUT_ERROR = "holdout/loss_standard_error"
"""Metric: standard error of LOSS as an estimate for other text, over independent tokens."""
LOSS_COLUMN = LOSS.replace("/", "_")
"""The same in trials.csv and in the best trial of summary.json."""


_FILE, _COPY, _REPORTS = "trial.json", ".trial.json.copy", "reports.jsonl"
_KEPT_BY_A_RETRY = (
    "number",
    "settings",
    "chosen_by",
    "run_to_end",
    "twin_of",
    "micro_batch_size_asked",
    "predicted_peak_memory_bytes",
    "memory_limit_bytes",
    "flops_per_token",
    "parameters",
    "trainable_parameters",
)
"""Fields of a record that do not come from its training."""


class DamagedRecordError(InputFault):
    """The record of a trial and its copy are no such records: a disk or another program has damaged them."""


class ChosenBy(StrEnum):
    """Origin of a trial's settings."""

    SEARCH = "search"
    START_WITH = "start_with"
    """Listed in the file."""
    INFORMED = "informed"
    """A point from prior knowledge."""
    REPEAT = "repeat"
    """The settings of a leading trial, with another seed."""
    PROBE = "scaled probe"
    """Settings of the space, moved along the path of the optimum to the length of a short training."""
    PREDICTED = "predicted best"
    """Trained in full because its loss there is predicted to be lowest."""
    TAKEN_OVER = "taken over"
    """A trial of an earlier sweep."""


class MemoryVerdict(StrEnum):
    """Effect of the memory limit on a trial, or of a rule on a proposal."""

    REFUSED = "refused by prediction"
    """Never launched."""
    SKIPPED = "skipped by dominance"
    """Never launched."""
    INVALID = "not a valid combination"
    """Never launched: its settings break a rule together, whatever the memory."""
    RAN_OUT = "ran out of memory"
    """Launched, and ended by it."""
    SURVIVED = "ran out of memory and went on"
    """Launched, and continued with a smaller micro-batch."""


class TrialSize(NamedTuple):
    """Size and cost of a trial's model, under the names of its record."""

    flops_per_token: float | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None


class TrialRecord(Settings):
    """The record of one trial, as in its `trial.json`."""

    number: int
    settings: dict[str, Any]
    """Swept settings: dotted path to value."""
    chosen_by: ChosenBy = ChosenBy.SEARCH
    taken_over_from: str = ""
    """Folder of that sweep and name of the trial there; empty for a trial of this sweep."""
    outcome: Outcome | None = None
    """None while the trial runs, or if the sweep ended before it."""
    reason: str = ""
    """Explanation of the outcome, with figures."""
    memory_verdict: MemoryVerdict | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    """Last metrics of the holdout and of downstream tasks."""
    ranked_by: Metric = BY_LOSS
    """Metric that ranks the trials of its sweep."""
    best_loss: float | None = None
    """Lowest holdout loss during training, in nats per predicted token."""
    rung_losses: dict[int, float] = Field(default_factory=dict)
    """Holdout loss at each rung, by rung in tokens; with trunk-and-branch the loss of the cooled-down branch."""
    paused_at: int | None = None
    """Rung, in tokens, at which the trial waits for promotion; its newest checkpoint is that of the trunk. None: it
    does not wait."""
    twin_of: int | None = None
    """Number of the trial with the same settings except the micro-batch; this trial copies its loss and is not
    trained. None: this trial is trained."""
    run_to_end: bool = False
    """True: drawn to be trained to the end whatever its losses at rungs."""
    tokens: int = 0
    """Tokens trained by the trunk."""
    training_s: float = 0.0
    """Seconds in steps of the trunk, without restarts."""
    branch_tokens: int = 0
    """Tokens trained by all branches; their weights are not kept."""
    branch_s: float = 0.0
    """Seconds in steps of the branches."""
    tokens_per_s: float | None = None
    flops_per_token: float | None = None
    """Floating-point operations per training token; None in records of older versions."""
    parameters: int | None = None
    """Parameters of the model, including adapters; None in records of older versions."""
    trainable_parameters: int | None = None
    """Parameters that training changes: all, or only the adapters."""
    micro_batch_size_asked: int | Literal["auto"] = "auto"
    micro_batch_size_used: int | None = None
    out_of_memory_events: int = 0
    """Number of times the trial ran out of memory; it survived all of them unless it ended as infeasible."""
    out_of_memory_micro_batches: tuple[int, ...] = ()
    """Micro-batches that ran out of memory, so they do not fit."""
    predicted_peak_memory_bytes: int | None = None
    """Prediction for the micro-batch asked for, or for the one used if that was `auto`."""
    peak_memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    interruptions: int = 0
    started_at: str = ""
    ended_at: str = ""
    earlier_attempts: int = 0
    """Trainings that ended without a result before `--retry`; each has a folder `attempt-<n>` in the trial's."""
    earlier_tokens: int = 0
    """Tokens trained by the earlier attempts, branches included."""
    earlier_s: float = 0.0
    """Seconds in steps of the earlier attempts."""
    retried_at: str = ""
    """Time of the last `--retry`."""

    @property
    def name(self) -> str:
        """Name of the trial's folder and MLflow run."""
        return f"trial-{self.number:04d}"

    @property
    def last_reason_line(self) -> str:
        """Last line of the reason; empty without one. In the traceback of a failure this line names the error."""
        return (self.reason.strip().splitlines() or [""])[-1]

    @property
    def training_flops(self) -> float | None:
        """Floating-point operations of training so far; None if unknown."""
        return None if self.flops_per_token is None else self.tokens_spent * self.flops_per_token

    @property
    def tokens_spent(self) -> int:
        """Tokens trained in this sweep, with branches and earlier attempts; 0 for a trial that was taken over."""
        return 0 if self.taken_over_from else self.tokens + self.branch_tokens + self.earlier_tokens

    @property
    def spent_s(self) -> float:
        """Seconds in steps in this sweep, with branches and earlier attempts; 0 for a trial that was taken over."""
        return 0.0 if self.taken_over_from else self.training_s + self.branch_s + self.earlier_s

    @property
    def state(self) -> str:
        """The outcome, else RUNNING or PAUSED."""
        if self.outcome:
            return str(self.outcome)
        return "RUNNING" if self.paused_at is None and self.twin_of is None else "PAUSED"

    @property
    def loss(self) -> float | None:
        """Last holdout loss in nats per predicted token; None before the first evaluation."""
        return self.metrics.get(LOSS)

    @property
    def score(self) -> float | None:
        """Value of the metric that ranks trials; None before it is known."""
        return self.metrics.get(self.ranked_by.name)

    @property
    def cost(self) -> float | None:
        """The score, negated where the highest is best: the lowest cost is best. By default the loss."""
        return None if self.score is None else self.ranked_by.cost(self.score)

    @property
    def prediction_error(self) -> float | None:
        """Share by which the measured peak exceeds the prediction; None if the two are not comparable.

        The peak of a trial that ran out of memory belongs to another micro-batch than the prediction.
        """
        predicted, measured = self.predicted_peak_memory_bytes, self.peak_memory_bytes
        if not predicted or not measured or self.out_of_memory_events or self.outcome is Outcome.INFEASIBLE:
            return None
        return measured / predicted - 1

    @property
    def is_repeat(self) -> bool:
        """Whether it has the settings of another trial of the sweep, with another seed."""
        return self.chosen_by is ChosenBy.REPEAT

    @property
    def is_done(self) -> bool:
        """Whether the trial has ended for good."""
        return self.outcome is not None and self.outcome.is_final


class RefusedProposal(Settings):
    """A proposal of the searcher that was never launched; it does not count as a trial."""

    settings: dict[str, Any]
    verdict: MemoryVerdict
    reason: str
    micro_batch_size: int | None = None
    predicted_peak_memory_bytes: int | None = None
    memory_limit_bytes: int | None = None


class TrialStore:
    """The `trials/` folder of one sweep."""

    def __init__(self, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> None:
        """
        Args:
            say: Called with a line about a damaged record whose copy is read.
        """
        self.folder, self._say = folder, say
        folder.mkdir(parents=True, exist_ok=True)

    def folder_of(self, record: TrialRecord) -> Path:
        """Folder of one trial; created if missing."""
        folder = self.folder / record.name
        folder.mkdir(exist_ok=True)
        return folder

    def save(self, record: TrialRecord) -> None:
        """Write the record and its copy; a reader sees the old one or the new one, never a part."""
        folder, text = self.folder_of(record), record.model_dump_json(indent=1)
        for name in (_COPY, _FILE):
            write_atomically(folder / name, text)

    def load_all(self) -> list[TrialRecord]:
        """All records, by number.

        Raises:
            DamagedRecordError: One of them and its copy are damaged; the message names it.
        """
        return [self._read(path) for path in sorted(self.folder.glob(f"trial-*/{_FILE}"))]

    def load(self, number: int) -> TrialRecord | None:
        """The record of one trial; None if it has none yet.

        Raises:
            DamagedRecordError: As `load_all`.
        """
        path = self.folder / f"trial-{number:04d}" / _FILE
        return self._read(path) if path.exists() else None

    def _read(self, path: Path) -> TrialRecord:
        try:
            return TrialRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            damage = f"{path} is damaged: {''.join(f'{part}: ' for part in fault['loc'])}{fault['msg']}."
            try:
                record = TrialRecord.model_validate_json(path.with_name(_COPY).read_bytes())
            except (OSError, ValidationError):
                raise DamagedRecordError(
                    f"{damage} Delete the folder {path.parent}: the same command then trains its settings again."
                ) from error
            self._say(f"records  {damage} Its copy {_COPY} is read instead.")
            return record

    def set_aside(self, record: TrialRecord) -> TrialRecord:
        """Keep the attempt of an ended trial in a folder of its own, so that the trial is trained from the start.

        `attempt-<n>` gets its record, reports and TensorBoard events; the log stays, with a line about the end. A call
        after one that was killed completes it.

        Returns:
            The record of the trial before its next attempt; saved last.
        """
        folder, number = self.folder_of(record), record.earlier_attempts + 1
        kept = folder / f"attempt-{number}"
        make_folder(kept)
        write_atomically(kept / _FILE, record.model_dump_json(indent=1))
        for name in (_REPORTS, "tensorboard"):
            if (folder / name).exists() and not (kept / name).exists():
                (folder / name).rename(kept / name)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        append_line(
            folder / "log.txt",
            f"{at[:19]}Z attempt {number} ended {record.outcome} at {record.tokens:,} tokens "
            f"({record.last_reason_line}) and is kept in {kept.name}; --retry trains the trial from the start",
        )
        # A file and not none: a copy at a URI keeps a file that is gone here.
        write_atomically(folder / _REPORTS, "")
        again = TrialRecord(
            **{name: getattr(record, name) for name in _KEPT_BY_A_RETRY},
            earlier_attempts=number,
            earlier_tokens=record.tokens_spent,
            earlier_s=record.spent_s,
            retried_at=at,
        )
        self.save(again)
        return again

    def append_report(self, record: TrialRecord, report: dict[str, float]) -> None:
        """Append one report of the running trial."""
        append_line(self.folder_of(record) / _REPORTS, json.dumps(report))

    def append_refusal(self, refused: "RefusedProposal") -> None:
        """Append one proposal that was never launched."""
        append_line(self.folder / "refused.jsonl", refused.model_dump_json())

    def load_refusals(self) -> list["RefusedProposal"]:
        """All proposals that were never launched, in order."""
        path = self.folder / "refused.jsonl"
        if not path.exists():
            return []
        return [RefusedProposal.model_validate(line) for line in _json_lines(path)]

    def append_widening(self, widening: Settings) -> None:
        """Append one widening of the search space."""
        append_line(self.folder / "widened.jsonl", widening.model_dump_json(exclude_none=True))

    def load_widenings(self) -> list[Any]:
        """All widenings of the search space, in order, as plain values."""
        path = self.folder / "widened.jsonl"
        return list(_json_lines(path)) if path.exists() else []

    def reports(self, record: TrialRecord) -> Iterator[dict[str, float]]:
        """The trial's reports in order of tokens; steps repeated after an interruption appear once."""
        path = self.folder / record.name / _REPORTS
        if not path.exists():
            return
        last_tokens = -1.0
        for report in _json_lines(path):
            if report["tokens"] > last_tokens:
                last_tokens = report["tokens"]
                yield report


def _json_lines(path: Path) -> Iterator[Any]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # A killed driver can leave an incomplete line.
