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
    folder, uri = results_place(results)
    from sweeps.ray_session import connect_while_importing, log_libraries_in
    from sweeps.results_folder import may_be_finished

    log_libraries_in(folder)
    if not may_be_finished(folder, config.name):
        connect_while_importing("sweeps.closing", "sweeps.sweep")
    from sweeps.closing import close
    from sweeps.sweep import run_sweep

    console = terminal()
    close(run_sweep(config, results_folder=folder, console=console, kept_at=uri), console)
