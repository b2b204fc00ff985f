"""Live progress of a sweep: a table on a terminal, one line per event elsewhere."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from data_pipeline.schema.settings import clock, format_bytes
from data_pipeline.schema.terminal_text import echo, visible
from sweeps.analysis.result_tables import ranked, results_in_words
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialRecord
from sweeps.settings.search_space import format_setting, settings_in_words, short_name

STYLES = {
    Outcome.COMPLETED: "green",
    Outcome.STOPPED: "cyan",
    Outcome.INFEASIBLE: "yellow",
    Outcome.DIVERGED: "magenta",
    Outcome.INTERRUPTED: "bright_black",
    Outcome.FAILED: "red",
}
_LEADERS = 5
_REDRAWS_PER_S = 2


class Progress:
    """Prints the progress of a running sweep: a live table on a terminal, else one line per event."""

    def __init__(
        self,
        console: Console,
        records: Callable[[], Sequence[TrialRecord]],
        *,
        num_trials: int,
        tokens_per_trial: int,
        num_refused: Callable[[], int],
    ) -> None:
        self._console, self._records, self._num_refused = console, records, num_refused
        self._num_trials, self._tokens_per_trial = num_trials, tokens_per_trial
        self._started_at = time.monotonic()
        self._speed: dict[int, float] = {}
        self._live: Live | None = None
        self._tenths_said = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._draw,
                console=self._console,
                refresh_per_second=_REDRAWS_PER_S,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on_event(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A listener of the ledger."""
        if report is not None and "train/tokens_per_s" in report:
            self._speed[record.number] = report["train/tokens_per_s"]
        if event in (TrialEvent.PAUSED, TrialEvent.ENDED):
            self._speed.pop(record.number, None)
        line = self._line(event, record, report)
        if line is not None and (self._live is None or event is TrialEvent.ENDED):
            self._print(line)
        if self._live is None:
            self._say_tenth()

    def _say_tenth(self) -> None:
        """Print the share of the sweep and the time left whenever another tenth is done."""
        total = self._num_trials * self._tokens_per_trial
        done = 1 - self._tokens_left(list(self._records())) / total
        if int(10 * done) > self._tenths_said:
            self._tenths_said = int(10 * done)
            self._print(
                Text(f"sweep       {10 * self._tenths_said:3}%        ").append(self._pace(list(self._records())))
            )

    def _print(self, line: Text) -> None:
        if self._console.is_terminal:
            self._console.print(line, soft_wrap=True)
        else:  # Plain text: rich takes a hundred times as long for the same output.
            echo(line.plain, file=self._console.file)

    def _line(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> Text | None:
        line = Text(record.name)
        if event is TrialEvent.PAUSED and record.paused_at is not None:
            done, loss = record.paused_at / self._tokens_per_trial, record.rung_losses[record.paused_at]
            return line.append(f"  {min(done, 1):4.0%} pauses holdout loss {loss:.4f} after a cooldown", style="dim")
        if event is TrialEvent.PROMOTED:
            return line.append("  promoted    resumes from the checkpoint before the cooldown", style="dim")
        if event is TrialEvent.STARTED:
            return line.append(f"  starts      {settings_in_words(record.settings)}", style="dim")
        if event is TrialEvent.REPORT and report is not None and LOSS in report:
            done = report["tokens"] / self._tokens_per_trial
            return line.append(f"  {min(done, 1):4.0%}        holdout loss {report[LOSS]:.4f}", style="dim")
        if event is TrialEvent.ENDED:
            outcome = record.outcome or Outcome.INTERRUPTED
            line.append(f"  {outcome:<11}", style=STYLES[outcome])
            reason = record.last_reason_line
            if outcome is Outcome.COMPLETED:
                reason = f"{results_in_words(record)}   {settings_in_words(record.settings)}"
            return line.append(f" {visible(reason)}")
        return None

    def _draw(self) -> Group:
        records = list(self._records())
        fits = _what_fits(records)
        known = [] if fits is None else [fits]
        return Group(self._counts(records), leaders_table(records, limit=_LEADERS), *known, self._pace(records))

    def _counts(self, records: Sequence[TrialRecord]) -> Text:
        text = Text("trials  ")
        counts = Counter(record.state for record in records)
        for state in (*map(str, Outcome), "PAUSED", "RUNNING"):
            if counts[state]:
                is_ended = state in list(Outcome)
                style = STYLES[Outcome(state)] if is_ended else "bold"
                text.append(f"{state if is_ended else state.lower()} {counts[state]}  ", style=style)
        if self._num_refused():
            text.append(f"refused before launch {self._num_refused()}", style="yellow")
        return text

    def _pace(self, records: Sequence[TrialRecord]) -> Text:
        elapsed_s = time.monotonic() - self._started_at
        speed = sum(self._speed.values())
        text = Text(f"{speed:,.0f} tokens/s   {clock(elapsed_s)} elapsed")
        return text.append(f"   at most {clock(self._tokens_left(records) / speed)} left") if speed else text

    def _tokens_left(self, records: Sequence[TrialRecord]) -> int:
        """An upper bound: early stopping will end some trials sooner."""
        counted = [record for record in records if record.outcome is not Outcome.INFEASIBLE]
        used = sum(self._tokens_per_trial if r.is_done else r.tokens for r in counted)
        return max(0, self._num_trials * self._tokens_per_trial - used)


class View(Protocol):
    """A view of a running sweep: open while it trains, a listener of its ledger."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def on_event(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A trial started, reported, paused, was promoted or ended."""
        ...


class ViewMaker(Protocol):
    """Makes a view from the arguments of `Progress`."""

    def __call__(
        self,
        console: Console,
        /,
        records: Callable[[], Sequence[TrialRecord]],
        *,
        num_trials: int,
        tokens_per_trial: int,
        num_refused: Callable[[], int],
    ) -> View: ...


def _what_fits(records: Sequence[TrialRecord]) -> Text | None:
    """The largest measured peak and the smallest micro-batch that ran out of memory; None before either is known."""
    line = Text("fits    ")
    measured = [r for r in records if r.peak_memory_bytes and r.memory_limit_bytes and r.micro_batch_size_used]
    if measured:
        top = max(measured, key=lambda record: record.peak_memory_bytes or 0)
        peak, limit = format_bytes(top.peak_memory_bytes or 0), format_bytes(top.memory_limit_bytes or 0)
        line.append(f"micro-batch {top.micro_batch_size_used} has the highest peak, {peak} of {limit}   ")
    ran_out = {size for record in records for size in record.out_of_memory_micro_batches}
    if ran_out:
        line.append(f"micro-batch {min(ran_out)} ran out of memory", style="yellow")
    return line if measured or ran_out else None


def leaders_table(records: Sequence[TrialRecord], limit: int | None = None) -> Table:
    """Table of the trials with a loss, best first.

    Args:
        limit: Number of trials to show. None: all.
    """
    paths = list(dict.fromkeys(path for record in records for path in record.settings))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rank", "trial", "outcome"):
        table.add_column(name)
    metric = next((record.ranked_by for record in records if not record.ranked_by.is_loss), None)
    if metric is not None:
        table.add_column(metric.in_words, justify="right", overflow="fold")
    # Headings contain spaces: a narrow terminal folds them there and cuts no number.
    for name in ("holdout loss", "tokens", "tokens /s", *(short_name(path).replace("_", " ") for path in paths)):
        table.add_column(name, justify="right", overflow="fold")
    shown = [record for record in ranked(records) if record.loss is not None][:limit]
    for rank, record in enumerate(shown, start=1):
        table.add_row(
            str(rank),
            record.name,
            Text(
                str(record.outcome or record.state.lower()), style=STYLES[record.outcome] if record.outcome else "bold"
            ),
            *([] if metric is None else ["" if record.score is None else f"{record.score:.4f}"]),
            f"{record.loss:.4f}",
            f"{record.tokens:,}",
            "" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f}",
            *(format_setting(record.settings.get(path, "")) for path in paths),
        )
    return table
