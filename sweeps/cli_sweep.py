"""The command that runs a sweep."""

import os
from typing import Annotated

import typer

from sweeps.command_frame import VERBOSE, File, Results, Set, explains_faults, results_place, terminal


@explains_faults
def sweep(
    file: File,
    overrides: Set = None,
    results: Results = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print what Ray and its workers say.")] = False,
) -> None:
    """Run a sweep; the same command again goes on with it.

    On a terminal a table shows how it goes; piped, each event is a line.
    """
    if verbose:
        os.environ[VERBOSE] = "1"
    from sweeps.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    from sweeps.closing import close
    from sweeps.sweep import run_sweep

    console = terminal()
    folder, uri = results_place(results)
    close(run_sweep(config, results_folder=folder, console=console, kept_at=uri), console)
