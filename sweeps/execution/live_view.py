"""The live view of a running sweep on a terminal, drawn from its records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from data_pipeline.schema.settings import clock, format_bytes
from data_pipeline.schema.terminal_text import visible
from sweeps.analysis.result_tables import best_trial, ranked, results_in_words
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord
from sweeps.search_space.distribution import format_setting, settings_in_words, short_name

STYLES = {
    Outcome.COMPLETED: "green",
    Outcome.STOPPED: "cyan",
    Outcome.INFEASIBLE: "yellow",
    Outcome.DIVERGED: "magenta",
    Outcome.INTERRUPTED: "bright_black",
    Outcome.FAILED: "red",
}
_LEADERS = 5
_GIVEN_UP = 3
"""Newest trials without a result that are shown with their reasons."""


@dataclass(frozen=True)
class SweepNow:
    """A running sweep at one moment."""

    records: Sequence[TrialRecord]
    reports: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Newest report of each running trial, by number."""
    tokens_per_trial: int = 1
    most_tokens: int = 1
    """Tokens of all trials, none of them stopped early."""
    expected_tokens: float | None = None
    """Tokens that the rule of early stopping is expected to use, branches included; None: not known."""
    rate: float | None = None
    """Tokens a second of the whole sweep so far, pauses included; None before the first reports."""
    elapsed_s: float = 0.0
    num_refused: int = 0
    stopped_count_in_full: bool = True
    """A stopped trial saves the rest of its tokens; False: another one gets them, as in a full-length search."""

    @property
    def tokens_per_s(self) -> float:
        """Of all running trials together."""
        return sum(report.get("train/tokens_per_s", 0.0) for report in self.reports.values())

    @property
    def tokens_left(self) -> int:
        """Most tokens that are still to be trained: early stopping will end some trials sooner."""
        if not self.stopped_count_in_full:
            return max(0, self.most_tokens - sum(record.tokens_spent for record in self.records))
        counted = [record for record in self.records if record.outcome is not Outcome.INFEASIBLE]
        used = sum(self.tokens_per_trial if record.is_done else record.tokens for record in counted)
        return max(0, self.most_tokens - used)

    @property
    def share(self) -> float:
        """Share of the sweep that is done, in [0, 1]: trained, or not to be trained."""
        return 1 - self.tokens_left / self.most_tokens

    @property
    def expected_left(self) -> float | None:
        """Tokens that are expected to be trained still."""
        if self.expected_tokens is None:
            return None
        spent = sum(record.tokens_spent for record in self.records)
        return min(max(0.0, self.expected_tokens - spent), float(self.tokens_left))

    def pace(self) -> Text:
        """Speed, elapsed time, and time left."""
        text = Text(f"{self.tokens_per_s:,.0f} tokens/s   {clock(self.elapsed_s)} elapsed")
        left = self.expected_left
        if left and self.rate:  # Repeats are trained beyond the expected tokens.
            return text.append(
                f"   about {clock(left / self.rate)} left, at most {clock(self.tokens_left / self.rate)}"
            )
        if self.tokens_per_s:
            text.append(f"   at most {clock(self.tokens_left / self.tokens_per_s)} left")
        return text


def live_view(now: SweepNow) -> Group:
    """Progress, running trials, the leading trials, the best with its lead, and what was given up and why."""
    parts: list[RenderableType] = [
        Text(f"sweep   {now.share:4.0%} of at most {now.most_tokens:,} tokens   ").append(now.pace()),
        _counts(now),
    ]
    running = [record for record in now.records if record.state == "RUNNING"]
    if running:
        parts.append(_running_table(running, now))
    parts.append(leaders_table(now.records, limit=_LEADERS))
    best = _best(now.records)
    fits = _what_fits(now.records)
    parts += [line for line in (best, fits) if line is not None]
    given_up = [record for record in now.records if record.outcome in Outcome.given_up()]
    for record in given_up[-_GIVEN_UP:]:
        assert record.outcome is not None
        line = Text(f"gave up {record.name} ", no_wrap=True, overflow="ellipsis").append(
            f"{record.outcome} ", STYLES[record.outcome]
        )
        parts.append(line.append(visible(record.last_reason_line)))
    return Group(*parts)


def _counts(now: SweepNow) -> Text:
    text = Text("trials  ")
    counts = Counter(record.state for record in now.records)
    for state in (*map(str, Outcome), "PAUSED", "RUNNING"):
        if counts[state]:
            is_ended = state in list(Outcome)
            style = STYLES[Outcome(state)] if is_ended else "bold"
            text.append(f"{state if is_ended else state.lower()} {counts[state]}  ", style=style)
    if now.num_refused:
        text.append(f"refused before launch {now.num_refused}", style="yellow")
    return text


def _running_table(running: Sequence[TrialRecord], now: SweepNow) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("running")
    for name in ("share", "loss", "tokens /s", "memory now", "predicted", "limit"):
        table.add_column(name, justify="right", overflow="fold")
    for record in running:
        report = now.reports.get(record.number, {})
        loss = report.get(LOSS, report.get("train/loss_nats_per_token", record.loss))
        rate, peak = report.get("train/tokens_per_s"), report.get("memory/peak_bytes")
        table.add_row(
            record.name,
            f"{min(report.get('tokens', record.tokens) / now.tokens_per_trial, 1):.0%}",
            "" if loss is None else f"{loss:.4f}",
            "" if rate is None else f"{rate:,.0f}",
            *("" if size is None else format_bytes(round(size)) for size in (
                peak or record.peak_memory_bytes, record.predicted_peak_memory_bytes, record.memory_limit_bytes
            )),
        )  # fmt: skip
    return table


def _best(records: Sequence[TrialRecord]) -> Text | None:
    best = best_trial(records)
    if best is None:
        return None
    others = [r for r in ranked(records) if r.outcome is Outcome.COMPLETED and r.settings != best.settings]
    line = Text("best    ", "bold green").append(f"{best.name}, {results_in_words(best)}", "default")
    second = next((record for record in others if record.cost is not None), None)
    if second is not None and second.cost is not None and best.cost is not None:
        lead, unit = second.cost - best.cost, " nats" if best.ranked_by.is_loss else ""
        line.append(f", {'leads' if lead >= 0 else 'behind'} {second.name} by {abs(lead):.4f}{unit}", "default")
    return line.append(f"   {settings_in_words(best.settings)}", "dim")


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
