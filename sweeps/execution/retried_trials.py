"""Trials trained again within their sweep: a finished sweep is opened again, and its accounts stay equal."""

from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.schema.settings import clock
from sweeps.analysis.result_tables import write_summary
from sweeps.records.outcomes import Outcome
from sweeps.records.remote_results import ResultsAtUri
from sweeps.records.results_folder import SUMMARY_FILE, SweepFolder
from sweeps.records.retry_request import Retried, RetryError, RetryRequest
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_sections import BudgetConfig
from sweeps.trained_models.winner_export import drop_checkpoints


def chosen_in(folder: SweepFolder, request: RetryRequest) -> Retried:
    """The trials of a sweep that a request chooses; none in a sweep that has no folder yet.

    Raises:
        RetryError: The request names what the sweep does not have.
    """
    is_there = folder.trials.is_dir()
    return request.chosen(TrialStore(folder.trials).load_all() if is_there else [])


def open_again(
    folder: SweepFolder,
    request: RetryRequest,
    *,
    summary: dict[str, Any] | None,
    at_uri: ResultsAtUri | None,
    say: Callable[[str], None],
) -> None:
    """Set aside the attempts of the chosen trials; the sweep then trains them as it trains interrupted ones.

    The caller holds the lock of the folder. After a kill within, the same command, with the same request, completes it.

    Args:
        summary: Content of summary.json; None without one.

    Raises:
        RetryError: The request names what the sweep does not have, or no time is left for it.
    """
    store = TrialStore(folder.trials)
    found = chosen_in(folder, request)
    for note in found.notes:
        say(f"retry    {note}")
    if not found.records:
        return
    budget = folder.sweep.budget
    _check_time(budget, wall_s=0.0 if summary is None else summary["wall_s"])
    if summary is not None:
        # First: from here on the plain command trains the chosen trials, too.
        write_summary(folder.path / SUMMARY_FILE, summary | {"status": SweepStatus.RUNNING})
    records = store.load_all()
    chosen = {record.number for record in found.records}
    for record in records:
        if record.number in chosen:
            trial_folder = store.folder_of(record)
            drop_checkpoints(trial_folder)
            if at_uri is not None:
                at_uri.drop_checkpoints(trial_folder)
            store.set_aside(record)
            ended = f"it ended {record.outcome} ({record.last_reason_line})"
            say(f"retry    {record.name} is trained from the start; {ended}")
        elif record.twin_of in chosen:
            # It takes the outcome of the next attempt.
            store.save(record.model_copy(update=_UNSETTLED))
    for words in _budget_in_words(budget, records, found.records):
        say(f"budget   {words}")


_UNSETTLED: dict[str, Any] = {
    "outcome": None,
    "reason": "",
    "metrics": {},
    "best_loss": None,
    "rung_losses": {},
    "started_at": "",
    "ended_at": "",
}


def _check_time(budget: BudgetConfig, *, wall_s: float) -> None:
    limit = budget.wall_clock_s
    if limit is not None and wall_s >= limit:
        raise RetryError(
            f"--retry: the sweep has used {clock(wall_s)} of budget.wall_clock={budget.wall_clock}, and a trial would "
            "stop at its first report. A file with more time is a new sweep, which takes over the finished trials."
        )


def _budget_in_words(
    budget: BudgetConfig, records: list[TrialRecord], chosen: tuple[TrialRecord, ...]
) -> Iterator[str]:
    """Effects of retried trials on the limits of the sweep."""
    names = ", ".join(record.name for record in chosen if record.outcome is Outcome.INFEASIBLE)
    if names:
        yield f"{names} counted as no trial of budget.trials, and counts as one where it fits now"
    most = len(chosen) * budget.trial_tokens
    used = sum(record.tokens_spent for record in records)
    if budget.tokens is not None and used + most > budget.tokens:
        yield f"{used:,} of {budget.tokens:,} tokens are used; the retried trials may take up to {most:,} more"
    work = sum((record.flops_per_token or 0.0) * budget.trial_tokens for record in chosen)
    operations = sum(record.training_flops or 0.0 for record in records)
    if budget.flops is not None and operations + work > budget.flops:
        yield f"{operations:.3g} of {budget.flops:.3g} operations are used; the retried trials may take {work:.3g} more"
