"""Results of a sweep that still runs: whoever looks, or is left with a killed sweep, finds them as they stand."""

import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sweeps.analysis.result_tables import write_summary, write_trials_csv
from sweeps.records.throttle import Pace
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord
from sweeps.report.report import write_report
from sweeps.settings.sweep_config import SweepConfig


class RunningResults:
    """Writes trials.csv, summary.json and the report in the background, when trials end.

    Args:
        current: The records as they are, and the summary of them.
        pace: When they are written again.
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
        """Write if a trial has ended, and it is time."""
        if event is not TrialEvent.ENDED or not self._pace.is_due() or (self._writing and self._writing.is_alive()):
            return
        done = self._pace.start()
        # Gathered here, where nothing changes meanwhile.
        records, summary = self._current()
        self._writing = threading.Thread(target=self._write, args=(list(records), summary, done), name="results")
        self._writing.start()

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing.join()

    def _write(self, records: list[TrialRecord], summary: dict[str, Any], done: Callable[[], None]) -> None:
        try:
            write_trials_csv(self._folder / "trials.csv", records)
            write_summary(self._folder / "summary.json", summary)
            write_report(self._folder, self._sweep, records, summary)
        except Exception as error:  # No reason to end a sweep, whose end writes them again.
            warnings.warn(f"the results so far could not be written: {error!r}", stacklevel=1)
        done()
