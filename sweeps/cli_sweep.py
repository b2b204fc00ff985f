"""The command that runs a sweep."""

from sweeps.command_frame import (
    File,
    Results,
    Set,
    Verbose,
    explains_faults,
    let_ray_speak,
    results_place,
    terminal,
)


@explains_faults
def sweep(
    file: File,
    overrides: Set = None,
    results: Results = None,
    verbose: Verbose = False,
) -> None:
    """Run a sweep; the same command again goes on with it.

    On a terminal a table shows how it goes; piped, each event is a line.
    """
    let_ray_speak(verbose)
    from sweeps.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    from sweeps.closing import close
    from sweeps.sweep import run_sweep

    console = terminal()
    folder, uri = results_place(results)
    close(run_sweep(config, results_folder=folder, console=console, kept_at=uri), console)
