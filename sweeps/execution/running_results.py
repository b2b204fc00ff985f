"""Intermediate results of a running sweep: they stay readable while it runs and after it was killed."""

import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.schema.terminal_text import visible
from sweeps.analysis.result_tables import write_summary, write_trials_csv
from sweeps.records.result_parts import ResultParts
from sweeps.records.throttle import Pace
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord
from sweeps.report.report import write_report
from sweeps.settings.sweep_config import SweepConfig


class RunningResults:
    """Writes trials.csv, summary.json and the report in the background when trials end.

    Args:
        current: Returns the current records and their summary.
        pace: Decides when the files are due again.
    """

    def __init__(
        self,
        folder: Path,
        sweep: SweepConfig,
        current: Callable[[], tuple[Sequence[TrialRecord], dict[str, Any]]],
        *,
        pace: Pace | None = None,
    ) -> None:
        self._folder, self._sweep, self._current = folder, sweep, current
        self._pace = pace or Pace()
        self._writing: threading.Thread | None = None

    def on_event(self, event: TrialEvent, _record: TrialRecord, _report: Any) -> None:
        """A ledger listener: start a write if a trial ended and a write is due."""
        if event is not TrialEvent.ENDED or not self._pace.is_due() or (self._writing and self._writing.is_alive()):
            return
        done = self._pace.start()
        parts = ResultParts(self._folder)
        try:
            # Gather here, in the thread that changes the records.
            records, summary = self._current()
        except Exception as error:  # A fault in a summary ends no training.
            parts.note("the summary so far", error)
            self._tell(parts)
            return
        self._writing = threading.Thread(target=self._write, args=(list(records), summary, parts, done), name="results")
        self._writing.start()

    def close(self) -> None:
        """Wait for the current write to finish."""
        if self._writing is not None:
            self._writing.join()

    def _write(
        self, records: list[TrialRecord], summary: dict[str, Any], parts: ResultParts, done: Callable[[], None]
    ) -> None:
        parts.attempt("trials.csv", lambda: write_trials_csv(self._folder / "trials.csv", records))
        parts.attempt("summary.json", lambda: write_summary(self._folder / "summary.json", summary))
        write_report(self._folder, self._sweep, records, summary, parts)
        self._tell(parts)
        done()

    def _tell(self, parts: ResultParts) -> None:
        # Not fatal: the end of the sweep writes them again.
        if parts.failed:
            warnings.warn(
                f"cannot write all intermediate results to {visible(str(self._folder))}: "
                f"{visible('; '.join(map(str, parts.failed)))}. The sweep continues and writes them again at its end.",
                stacklevel=1,
            )
