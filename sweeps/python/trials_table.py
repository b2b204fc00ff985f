"""The trials of a sweep as a table of a notebook: HTML without script, in the colours of the page around it."""

import html
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from data_pipeline.schema.settings import clock
from data_pipeline.schema.terminal_text import visible
from sweeps.analysis.result_tables import ranked
from sweeps.execution.live_progress import ViewMaker
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.search_space import format_setting, short_name

Display = Callable[[str], Callable[[str], None]]
"""Shows an HTML text and returns the function that replaces it."""
_REDRAWN_EVERY_S = 0.5
_CELL = 'style="text-align: right; padding: 2px 8px"'


class LiveTable:
    """A listener of a running sweep that redraws a table in place."""

    def __init__(
        self,
        display: Display,
        records: Callable[[], Sequence[TrialRecord]],
        *,
        num_trials: int,
        tokens_per_trial: int,
        num_refused: Callable[[], int],
    ) -> None:
        self._display, self._records, self._num_refused = display, records, num_refused
        self._num_trials, self._tokens_per_trial = num_trials, tokens_per_trial
        self._started_at, self._drawn_at = time.monotonic(), -math.inf
        self._replace: Callable[[str], None] | None = None

    def __enter__(self) -> Self:
        self._replace = self._display(self._html())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redraw()

    def on_event(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A listener of the ledger."""
        is_due = time.monotonic() - self._drawn_at >= _REDRAWN_EVERY_S
        if is_due or event is not TrialEvent.REPORT:
            self._redraw()

    def _redraw(self) -> None:
        if self._replace is not None:
            self._replace(self._html())
        self._drawn_at = time.monotonic()

    def _html(self) -> str:
        records = list(self._records())
        done = sum(self._tokens_per_trial if one.is_done else one.tokens for one in records)
        share = min(done / max(self._num_trials * self._tokens_per_trial, 1), 1)
        words = (
            f"{share:.0%} of at most {self._num_trials} trials, {clock(time.monotonic() - self._started_at)} elapsed"
        )
        if self._num_refused():
            words += f", {self._num_refused()} refused before launch"
        return f"<p>{html.escape(words)}</p>{trials_table(ranked(records), tokens_per_trial=self._tokens_per_trial)}"


def live_table() -> ViewMaker | None:
    """The maker of a live table in a notebook; None elsewhere."""
    shell = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    if shell is None or getattr(running, "kernel", None) is None:
        return None

    def display(page: str) -> Callable[[str], None]:
        handle = shell.display.display(shell.display.HTML(page), display_id=True)
        return lambda later: handle.update(shell.display.HTML(later))

    def table(
        _console: Console,
        /,
        records: Callable[[], Sequence[TrialRecord]],
        *,
        num_trials: int,
        tokens_per_trial: int,
        num_refused: Callable[[], int],
    ) -> LiveTable:
        sizes = {"num_trials": num_trials, "tokens_per_trial": tokens_per_trial}
        return LiveTable(display, records, **sizes, num_refused=num_refused)

    return table


def trials_table(records: Sequence[TrialRecord], *, tokens_per_trial: int | None = None) -> str:
    """Trials in the given order, as an HTML table.

    Args:
        tokens_per_trial: Given for a running sweep: the table shows the share that each trial has trained.
    """
    paths = list(dict.fromkeys(path for record in records for path in record.settings))
    names = ["trial", "outcome", "holdout loss", "tokens", "tokens/s", *map(short_name, paths)]
    rows = [_row(record, paths, tokens_per_trial) for record in records]
    return _table([[_text(name) for name in names], *rows])


def _row(record: TrialRecord, paths: Sequence[str], tokens_per_trial: int | None) -> list[str]:
    share = "" if tokens_per_trial is None else f" ({min(record.tokens / tokens_per_trial, 1):.0%})"
    outcome = record.outcome if record.outcome is not Outcome.FAILED else f"FAILED: {record.last_reason_line}"
    values: list[Any] = [
        record.name,
        outcome or record.state.lower(),
        "" if record.loss is None else f"{record.loss:.4f}",
        f"{record.tokens:,}{share}",
        "" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f}",
        *(format_setting(record.settings.get(path, "")) for path in paths),
    ]
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    return html.escape(visible(str(value)))


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th {_CELL}>{name}</th>" for name in head)
    lines = ["".join(f"<td {_CELL}>{cell}</td>" for cell in row) for row in body]
    return f"<table><tr>{cells}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
