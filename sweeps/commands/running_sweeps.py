"""Commands on a sweep that runs elsewhere: how far it has come, and its end."""

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.command_frame import AsJson, Results, explains_faults, print_json, results_folder, terminal

_PATIENCE_S = 120.0
"""Seconds in which a driver ends its trials and writes its results."""


@explains_faults
def status(
    sweep: Annotated[
        Path | None,
        typer.Argument(
            metavar="SWEEP", help="Folder of a sweep, or of several. Default: the newest sweep.", show_default=False
        ),
    ] = None,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a sweep has come, from its files.

    Any terminal or machine that sees the folder will do, whether the sweep still runs or not. Of a folder with several
    sweeps, each has one line.
    """
    from sweeps.analysis.progress_now import newest_sweep, progress_now, sweeps_in

    if sweep is not None and not (sweep / "sweep.yaml").is_file() and (several := sweeps_in(sweep)):
        _print_each(several, as_json=as_json)
        return
    now = progress_now(sweep or newest_sweep(results_folder(results)))
    if as_json:
        print_json(now.figures())
        return
    for label, words in now.lines():
        terminal().print(f"{label:<8} {words}", highlight=False, soft_wrap=True, markup=False)


def _print_each(folders: list[Path], *, as_json: bool) -> None:
    """Print the progress of several sweeps, the newest first; of a damaged one its fault."""
    from sweeps.analysis.progress_now import progress_now

    width = max(len(folder.name) for folder in folders)
    figures = []
    for folder in folders:
        try:
            now = progress_now(folder)
            line, one = now.in_a_line(), now.figures()
        except InputFault as fault:
            line, one = f"damaged     {fault}", {"folder": str(folder), "fault": str(fault)}
        figures.append(one)
        if not as_json:
            words = f"{folder.name:<{width}}  {line}"
            terminal().print(words, highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print_json({"sweeps": figures})


@explains_faults
def stop(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="Folder of a running sweep.", show_default=False)],
) -> None:
    """End a running sweep as Ctrl-C does.

    Its trials become INTERRUPTED and its results are written; the command that ran it resumes it.
    """
    from sweeps.analysis.progress_now import progress_now
    from sweeps.records.running_driver import ask_to_end

    now = progress_now(sweep)
    has_ended = ask_to_end(sweep, patience_s=_PATIENCE_S)
    words = "ended; its own command resumes it" if has_ended else "was asked to end and still writes its results"
    terminal().print(f"stopped  {now.driver}: {words}", highlight=False, soft_wrap=True, markup=False)
