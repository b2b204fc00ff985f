"""Live progress of a sweep: one view on a terminal, one line per event elsewhere."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from data_pipeline.schema.terminal_text import echo, visible
from sweeps.analysis.result_tables import results_in_words
from sweeps.execution.live_view import STYLES, SweepNow, live_view
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialRecord
from sweeps.search_space.distribution import settings_in_words

_REDRAWS_PER_S = 2
_LEAST_S = 5.0
"""Seconds of training before a rate is told."""


class Progress:
    """Prints the progress of a running sweep: one live view on a terminal, else one line per event."""

    def __init__(
        self,
        console: Console,
        records: Callable[[], Sequence[TrialRecord]],
        *,
        num_trials: int,
        tokens_per_trial: int,
        num_refused: Callable[[], int],
        most_tokens: int | None = None,
        expected_tokens: float | None = None,
        stopped_count_in_full: bool = True,
    ) -> None:
        """
        Args:
            most_tokens: Tokens of all trials without early stopping. None: those of `num_trials` in full.
            expected_tokens: Tokens that early stopping is expected to leave of them, branches included; None: the time
                left is only bounded.
            stopped_count_in_full: As in `SweepNow`.
        """
        self._console, self._records, self._num_refused = console, records, num_refused
        self._tokens_per_trial = tokens_per_trial
        self._most_tokens = most_tokens or num_trials * tokens_per_trial
        self._expected_tokens, self._stopped_count_in_full = expected_tokens, stopped_count_in_full
        self._started_at = time.monotonic()
        self._reports: dict[int, Mapping[str, float]] = {}
        """Newest report of each running trial."""
        self._first_report: tuple[float, int] | None = None
        """Clock and tokens at the first report of this process."""
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
        self.note(event, record, report)
        line = self._line(event, record, report)
        if line is not None and (self._live is None or event is TrialEvent.ENDED):
            self._print(line)
        if self._live is None:
            self._say_tenth()

    def note(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """Keep the newest report of each running trial."""
        if report is not None:
            # A report of an evaluation has no speed: the last one stands.
            self._reports[record.number] = {**self._reports.get(record.number, {}), **report}
            if self._first_report is None:
                self._first_report = time.monotonic(), sum(one.tokens_spent for one in self._records())
        if event in (TrialEvent.PAUSED, TrialEvent.ENDED):
            self._reports.pop(record.number, None)

    def _say_tenth(self) -> None:
        """Print the share of the sweep and the time left whenever another tenth is done."""
        now = self.now()
        if int(10 * now.share) > self._tenths_said:
            self._tenths_said = int(10 * now.share)
            self._print(Text(f"sweep       {10 * self._tenths_said:3}%        ").append(now.pace()))

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
        return live_view(self.now())

    def now(self) -> SweepNow:
        """The sweep at this moment."""
        records = list(self._records())
        return SweepNow(
            records,
            dict(self._reports),
            tokens_per_trial=self._tokens_per_trial,
            most_tokens=self._most_tokens,
            expected_tokens=self._expected_tokens,
            rate=self._rate(records),
            elapsed_s=time.monotonic() - self._started_at,
            num_refused=self._num_refused(),
            stopped_count_in_full=self._stopped_count_in_full,
        )

    def _rate(self, records: Sequence[TrialRecord]) -> float | None:
        """Tokens a second since the first report, pauses and starts of trials included."""
        if self._first_report is None:
            return None
        seconds = time.monotonic() - self._first_report[0]
        tokens = sum(record.tokens_spent for record in records) - self._first_report[1]
        return tokens / seconds if seconds >= _LEAST_S and tokens > 0 else None
