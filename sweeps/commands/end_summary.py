"""The final summary of a sweep on the terminal: ranking, best settings, paths of the results, command to resume."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from data_pipeline.schema.settings import clock
from data_pipeline.schema.user_errors import InputFault
from sweeps.analysis.next_steps import best_on_an_edge
from sweeps.analysis.noise_floor import verdict, winner_in_words
from sweeps.analysis.rankings import disagreement, equal_budgets
from sweeps.analysis.result_tables import ranked
from sweeps.analysis.sweep_findings import gather
from sweeps.analysis.yardsticks import yardsticks_of
from sweeps.commands.command_frame import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_COMPLETED,
    EXIT_PARTS_MISSING,
)
from sweeps.execution.live_view import STYLES, leaders_table
from sweeps.execution.run_sweep import SweepEnd
from sweeps.records.outcomes import Outcome
from sweeps.records.printed_commands import command_line
from sweeps.records.result_parts import ResultParts
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS_COLUMN
from sweeps.search_space.distribution import format_setting, settings_in_words

_REFUSALS_SHOWN = 3


def close(end: SweepEnd, console: Console) -> None:
    """Print the final summary of a command and set its exit code.

    Raises:
        InputFault: The machine has ended the sweep.
        typer.Exit: The sweep was interrupted, is incomplete, completed no trial, or lacks a part of its results or
            of its records in MLflow.
    """
    command = command_line(*sys.argv[1:])
    print_end(end, console, command=command)
    if end.halted_by is not None:
        raise InputFault(f"{end.halted_by} Then the same command resumes the sweep: {command}")
    if end.status is SweepStatus.INTERRUPTED:
        raise typer.Exit(EXIT_INTERRUPTED)
    if end.status is SweepStatus.INCOMPLETE:
        raise typer.Exit(EXIT_INCOMPLETE)
    if end.summary["best"] is None and not _named_without_training(end):
        raise typer.Exit(EXIT_NOTHING_COMPLETED)
    if end.parts_missing or end.not_tracked:
        raise typer.Exit(EXIT_PARTS_MISSING)


def print_end(end: SweepEnd, console: Console, *, command: str) -> None:
    """Print the results of a sweep and the next command.

    Args:
        command: The command that ran the sweep, by `command_line`; the same command resumes it.
    """
    console.print()
    if end.was_done_before:
        console.print("the sweep was already finished; nothing was trained", style="bold")
    console.print(leaders_table(end.records))
    if any(record.is_repeat for record in end.records):
        # Without this line the smallest loss of the table seems to be in the wrong row.
        console.print("ranked by settings: the mean over their seeds, plus one standard error of it")
    _print_others(end, console)
    best = end.summary["best"]
    console.print()
    if best is not None:
        winner = next(record for record in end.records if record.name == best["trial"])
        loss = best[LOSS_COLUMN]
        metric = end.folder.sweep.ranked_by
        by = "" if metric.is_loss else f"{metric.name} {best[metric.column]:.4f}, "
        console.print(Text("best    ", "bold green"), f"{winner.name}, {by}holdout loss {loss:.4f} nats per token")
        for path, value in winner.settings.items():
            console.print(f"           {path}: {format_setting(value)}", highlight=False)
        yardsticks = yardsticks_of(end.summary)
        if yardsticks is not None:
            console.print(Text("tables  ", "bold"), yardsticks.in_words(loss), highlight=False, soft_wrap=True)
    elif _named_without_training(end):
        predicted = end.summary["predicted"]
        between = f"{predicted[LOSS_COLUMN]:.4f} +- {predicted['half_width_95']:.4f} nats per token (95 %)"
        console.print(Text("best    ", "bold green"), f"predicted, not trained: holdout loss {between}")
        for path, value in predicted["settings"].items():
            console.print(f"           {path}: {format_setting(value)}", highlight=False)
    found = verdict(end.records)
    if found is not None:
        console.print(Text("margin  ", "bold"), winner_in_words(found), highlight=False, soft_wrap=True)
    warnings = ResultParts(end.folder.path).make(
        "the list of warnings", lambda: list(_warnings(end)), lambda failed: [("missing", str(failed))]
    )
    for label, warning in warnings:
        console.print(Text(f"{label:<8}", "yellow"), warning, highlight=False, soft_wrap=True)
    # The end of the resumed sweep makes the parts that a fault of the machine has prevented.
    for failed in () if end.halted_by is not None else end.parts_missing:
        console.print(Text("missing ", "red"), str(failed), highlight=False, soft_wrap=True)
    for words in end.summary.get("search_from") or ():
        console.print(Text("prior   ", "bold"), words, highlight=False, soft_wrap=True, markup=False)
    folder = _short(end.folder.path)
    facts = [("model", _model(end))]
    facts += [
        ("report", folder / "report.html"),
        ("tables", folder / "trials.csv"),
        ("runs", command_line("ui", results=_short(end.folder.path.parent))),
    ]
    if end.model_uri:
        facts.insert(1, ("registry", end.model_uri))
    facts += [("took", f"{clock(end.summary['wall_s'])}, {_spent(end)}")]
    if end.summary.get("search_ended_by"):
        facts += [("ended by", end.summary["search_ended_by"])]
    if end.not_tracked and end.halted_by is None:
        facts += [("missing", f"{end.not_tracked}. To send it later, run the same command: {command}")]
    if end.status is not SweepStatus.FINISHED:
        facts += [] if end.halted_by is not None else [("resume", command)]
    elif end.parts_missing:
        facts += [("again", f"the same command makes the missing parts: {command}")]
    if end.status is SweepStatus.FINISHED and best is not None:
        facts += zip(("next", "", ""), _commands_to_try(end), strict=False)
    for label, text in facts:
        console.print(f"{label:<8} {text}", highlight=False, soft_wrap=True)


def _named_without_training(end: SweepEnd) -> bool:
    """Whether the sweep was to name settings without training them in full, and did."""
    return end.folder.sweep.early_stopping.confirm == "none" and end.summary.get("predicted") is not None


def _commands_to_try(end: SweepEnd) -> list[str]:
    """A use of the winner, its measurement, and for a sweep its full training, with the names of this sweep."""
    folder, sweep = _short(end.folder.path), end.folder.sweep
    if not sweep.objective.masked_lm:
        use = command_line("generate", folder, "The")
    elif sweep.tokenizer.kind == "file":  # Its mask may have any name.
        use = command_line("fill-mask", folder)
    else:
        use = command_line("fill-mask", folder, "The function returns a <mask>.")
    longer = command_line("train", folder, "--tokens", "10x")
    commands = [use, command_line("evaluate", folder), *([longer] if sweep.search else [])]
    # A results folder permits no code.
    return commands if sweep.model.class_ is None else [f"{command} --allow-code" for command in commands]


def _warnings(end: SweepEnd) -> Iterator[tuple[str, str]]:
    """Warnings of the report against using the winner as it is."""
    if end.summary["best"] is None:
        return
    yardsticks = yardsticks_of(end.summary)
    learnt = None if yardsticks is None else yardsticks.nothing_learnt(end.summary["best"][LOSS_COLUMN])
    if learnt is not None:
        yield "learnt", learnt
    findings = gather(end.folder.path, end.folder.sweep, end.records, end.summary)
    yield from (("edge", sentence) for sentence in best_on_an_edge(findings))
    yield from (("ranking", sentence) for sentence in disagreement(findings, equal_budgets(findings)))


def _print_others(end: SweepEnd, console: Console) -> None:
    """Print trials without a loss and proposals that were never launched, each with its reason."""
    for record in ranked(end.records):
        if record.loss is None:
            outcome = record.outcome or Outcome.INTERRUPTED
            words = (f"{record.name} ", Text(f"{outcome} ", STYLES[outcome]), record.last_reason_line)
            console.print(*words, highlight=False, soft_wrap=True)
    refused = end.summary["refused_before_launch"]
    for proposal in refused[:_REFUSALS_SHOWN]:
        verdict = Text(f"{proposal['verdict']}:", "yellow")
        reason = f"{proposal['reason']} ({settings_in_words(proposal['settings'])})"
        console.print("proposal   ", verdict, reason, highlight=False, soft_wrap=True)
    if len(refused) > _REFUSALS_SHOWN:
        console.print(f"            and {len(refused) - _REFUSALS_SHOWN} more proposals; summary.json lists them")


def _spent(end: SweepEnd) -> str:
    spent = end.summary["training_s_by_outcome"]
    return ", ".join(f"{seconds:.0f} s in {outcome}" for outcome, seconds in spent.items()) or "no training"


def _model(end: SweepEnd) -> Path | str:
    """The folder of the winner; or the reason why there is none."""
    model: str = end.summary["model"]
    # os.path takes a whole sentence for no folder, where Path.is_dir raises that its name is too long.
    return _short(Path(model)) if os.path.isdir(model) else model


def _short(path: Path) -> Path:
    """Path relative to the current folder if it lies below it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
