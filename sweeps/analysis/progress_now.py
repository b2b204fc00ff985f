"""How far a sweep has come, from its files alone: no Ray, whether its driver lives or not."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.schema.settings import clock, format_bytes
from sweeps.analysis.result_tables import best_trial, results_in_words
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SUMMARY_FILE, ResultsError, read_summary
from sweeps.records.running_driver import Driver, driver_of
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.search_space.distribution import settings_in_words
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file

_NEWEST = 5


@dataclass(frozen=True)
class ProgressNow:
    """A sweep at this moment."""

    folder: Path
    sweep: SweepConfig
    records: tuple[TrialRecord, ...]
    last_reports: dict[int, dict[str, float]]
    """The newest report of each running trial, by number."""
    driver: Driver | None
    """None: no process runs the sweep."""
    summary: dict[str, Any]
    """The last summary.json; empty before the first."""

    @property
    def status(self) -> SweepStatus:
        """Of summary.json; a sweep without a driver and without an end was interrupted."""
        if self.driver is not None:
            return SweepStatus.RUNNING
        said = self.summary.get("status", SweepStatus.RUNNING)
        return SweepStatus.INTERRUPTED if said == SweepStatus.RUNNING else SweepStatus(said)

    @property
    def running(self) -> tuple[TrialRecord, ...]:
        """Trials that train now; none without a driver."""
        return tuple(r for r in self.records if r.number in self.last_reports) if self.driver else ()

    @property
    def tokens_per_s(self) -> float:
        """Of all running trials together."""
        return sum(self.last_reports[r.number].get("train/tokens_per_s", 0.0) for r in self.running)

    @property
    def tokens_left(self) -> int:
        """Most tokens that are still to be trained; early stopping may save many of them."""
        length = self.sweep.budget.trial_tokens
        used = sum(length if record.is_done else self._tokens(record) for record in self.records)
        return max(0, self.sweep.num_trials * length - used)

    def _tokens(self, record: TrialRecord) -> int:
        return int(self.last_reports.get(record.number, {}).get("tokens", record.tokens))

    def lines(self) -> Iterator[tuple[str, str]]:
        """The progress as labels with their words."""
        counts = Counter(record.state.lower() for record in self.records)
        yield "sweep", f"{self.folder}: {self.status}" + (f", {self.driver}" if self.driver else "")
        yield "trials", ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "none yet"
        length = self.sweep.budget.trial_tokens
        for record in self.running:
            report = self.last_reports[record.number]
            words = f"{record.name} {min(report['tokens'] / length, 1):.0%}"
            loss = report.get(LOSS, report.get("train/loss_nats_per_token"))
            words += "" if loss is None else f", loss {loss:.4f}"
            words += f", {report.get('train/tokens_per_s', 0):,.0f} tokens/s"
            if "memory/peak_bytes" in report:
                predicted = record.predicted_peak_memory_bytes
                words += f", peak {format_bytes(report['memory/peak_bytes'])}"
                words += f" of {format_bytes(predicted)} predicted" if predicted else ""
            yield "running", words
        best = best_trial(self.records)
        if best is not None:
            yield "best", f"{best.name}, {results_in_words(best)}, {settings_in_words(best.settings)}"
        given_up = [record for record in self.records if record.outcome in Outcome.given_up()]
        for record in given_up[-_NEWEST:]:
            yield "given up", f"{record.name} {record.outcome}: {record.last_reason_line}"
        if self.driver is not None:
            speed = self.tokens_per_s
            left = f"at most {clock(self.tokens_left / speed)}" if speed else "not known until trials train"
            yield "left", f"{left}; {clock(self._elapsed_s())} since the first trial began"

    def in_a_line(self) -> str:
        """The progress in one line, without the folder."""
        best = best_trial(self.records)
        num_done = sum(record.is_done for record in self.records)
        words = f"{self.status:<11} {num_done} of {len(self.records)} trials have ended"
        words += "" if best is None else f", best {best.name} with holdout loss {best.loss:.4f}"
        if self.driver is not None:
            speed = self.tokens_per_s
            words += f", {len(self.running)} train"
            words += f", at most {clock(self.tokens_left / speed)} left" if speed else ""
        return words

    def _elapsed_s(self) -> float:
        began = [datetime.fromisoformat(record.started_at) for record in self.records if record.started_at]
        return (datetime.now(UTC) - min(began)).total_seconds() if began else 0.0

    def figures(self) -> dict[str, Any]:
        """The progress for scripts."""
        best = best_trial(self.records)
        return {
            "folder": str(self.folder),
            "status": self.status,
            "driver": None if self.driver is None else str(self.driver),
            "trials": dict(Counter(record.state for record in self.records)),
            "max_trials": self.sweep.num_trials,
            "tokens_left": self.tokens_left,
            "tokens_per_s": self.tokens_per_s,
            "running": {record.name: self.last_reports[record.number] for record in self.running},
            "best": None if best is None else _figures_of(best),
        }


def _figures_of(best: TrialRecord) -> dict[str, Any]:
    others = {} if best.ranked_by.is_loss else {"metric": best.ranked_by.name, "value": best.score}
    return {"trial": best.name, "loss": best.loss, **others, "settings": best.settings}


def progress_now(folder: Path) -> ProgressNow:
    """The progress of the sweep in a results folder.

    Raises:
        ResultsError: The folder holds no sweep.
    """
    if not (folder / "sweep.yaml").is_file():
        raise ResultsError(
            f"{folder} is no results folder of a sweep: it has no sweep.yaml, and no folder in it has one. "
            "Give results/<name>-<id>."
        )
    store = TrialStore(folder / "trials")
    records = tuple(store.load_all())
    running = [record for record in records if record.state == "RUNNING"]
    newest = {record.number: report for record in running for report in list(store.reports(record))[-1:]}
    summary = read_summary(folder) if (folder / SUMMARY_FILE).exists() else {}
    return ProgressNow(folder, load_sweep_file(folder / "sweep.yaml"), records, newest, driver_of(folder), summary)


def sweeps_in(results_folder: Path) -> list[Path]:
    """Folders of the sweeps directly in a results folder, the one that a process wrote to last first."""
    found = [path.parent for path in results_folder.glob("*/sweep.yaml")]
    return sorted(found, key=lambda folder: max(path.stat().st_mtime for path in folder.iterdir()), reverse=True)


def newest_sweep(results_folder: Path) -> Path:
    """The folder of the sweep that a process wrote to last.

    Raises:
        ResultsError: The results folder has no sweep.
    """
    found = sweeps_in(results_folder)
    if not found:
        raise ResultsError(f"{results_folder} has no sweep. Give results/<name>-<id>, or --results FOLDER.")
    return found[0]
