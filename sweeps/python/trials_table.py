"""The trials of a sweep as a table of a notebook: HTML without script, in the colours of the page around it."""

import html
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from data_pipeline.schema.terminal_text import visible
from sweeps.analysis.result_tables import ranked
from sweeps.execution.live_progress import Progress
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord
from sweeps.search_space.distribution import format_setting, short_name

_REDRAWN_EVERY_S = 0.5
_CELL = 'style="text-align: right; padding: 2px 8px"'


class LiveTable(Progress):
    """Redraws a table in place, in the cell of a notebook that runs the sweep."""

    _drawn_at = -math.inf
    _replace: Callable[[str], None] | None = None

    def __enter__(self) -> Self:
        self._replace = self.display(self._html())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redraw()

    def display(self, page: str) -> Callable[[str], None]:
        """Show an HTML text; the function that replaces it."""
        from IPython import display  # A notebook brings it.

        shown: Any = display  # Untyped.
        handle = shown.display(shown.HTML(page), display_id=True)
        return lambda later: handle.update(shown.HTML(later))

    def on_event(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A listener of the ledger."""
        self.note(event, record, report)
        if event is not TrialEvent.REPORT or time.monotonic() - self._drawn_at >= _REDRAWN_EVERY_S:
            self._redraw()

    def _redraw(self) -> None:
        if self._replace is not None:
            self._replace(self._html())
        self._drawn_at = time.monotonic()

    def _html(self) -> str:
        now = self.now()
        words = f"{now.share:.0%} of at most {now.most_tokens:,} tokens, {now.pace().plain}"
        if now.num_refused:
            words += f", {now.num_refused} refused before launch"
        table = trials_table(ranked(now.records), tokens_per_trial=now.tokens_per_trial)
        return f"<p>{html.escape(words)}</p>{table}"


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


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
