"""Results of a sweep that still runs: whoever looks, or is left with a killed sweep, finds them as they stand."""

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sweeps.report import write_report
from sweeps.results import write_summary, write_trials_csv
from sweeps.sweep_config import SweepConfig
from sweeps.trial_records import TrialRecord

_TIMES_AS_LONG = 60
"""So much longer than the last writing took is waited before the next one: it takes less than 2 % of one core."""


class RunningResults:
    """Writes trials.csv, summary.json and the report in the background, when trials end.

    Args:
        current: The records as they are, and the summary of them.
    """

    def __init__(
        self,
        folder: Path,
        sweep: SweepConfig,
        current: Callable[[], tuple[Sequence[TrialRecord], dict[str, Any]]],
    ) -> None:
        self._folder, self._sweep, self._current = folder, sweep, current
        self._writing: threading.Thread | None = None
        self._due_at = 0.0

    def on_event(self, event: str, _record: TrialRecord, _report: Any) -> None:
        """Write if a trial has ended, and it is time."""
        if event != "ended" or time.monotonic() < self._due_at or (self._writing and self._writing.is_alive()):
            return
        # Gathered here, where nothing changes meanwhile.
        records, summary = self._current()
        self._writing = threading.Thread(target=self._write, args=(list(records), summary), name="results")
        self._writing.start()

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing.join()

    def _write(self, records: list[TrialRecord], summary: dict[str, Any]) -> None:
        started_at = time.monotonic()
        try:
            write_trials_csv(self._folder / "trials.csv", records)
            write_summary(self._folder / "summary.json", summary)
            write_report(self._folder, self._sweep, records, summary)
        except Exception as error:  # No reason to end a sweep, whose end writes them again.
            warnings.warn(f"the results so far could not be written: {error!r}", stacklevel=1)
        now = time.monotonic()
        self._due_at = now + _TIMES_AS_LONG * (now - started_at)
