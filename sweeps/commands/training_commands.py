"""Commands that train: a whole sweep, or one configuration in full."""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.commands.command_frame import (
    AllowCode,
    File,
    Results,
    Set,
    Verbose,
    explains_faults,
    let_ray_speak,
    results_location,
    terminal,
)
from sweeps.commands.explain import ExplainKey
from sweeps.commands.lost_terminal import outlives_its_terminal


@explains_faults
def sweep(
    file: File,
    overrides: Set = None,
    results: Results = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(
            "--retry",
            metavar="failed|given-up|TRIAL",
            help="Train ended trials again: failed, given-up (also diverged or too large), or trial-0007. Repeatable.",
        ),
    ] = None,
    verbose: Verbose = False,
    allow_code: AllowCode = False,
    _explain: ExplainKey = None,
) -> None:
    """Run a sweep. The same command again resumes it.

    A terminal shows one live view. Piped output has one line per event.
    """
    let_ray_speak(verbose)
    from sweeps.records.retry_request import RetryRequest
    from sweeps.settings.class_of_file import permit_class

    asked_again = RetryRequest(tuple(retry or ()))
    from sweeps.settings.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    permit_class(config.model, is_trusted=config.trust_code or allow_code)
    folder, uri = results_location(results)
    from sweeps.lanes.library_logs import log_libraries_in
    from sweeps.lanes.ray_session import connect_while_importing, has_cluster
    from sweeps.records.results_folder import may_be_finished

    if config.needs_gpus and not has_cluster():
        # Report a fault that needs no Ray before Ray starts, which takes seconds.
        from sweeps.lanes.lane_planning import this_machine
        from sweeps.planning.first_checks import check_device

        check_device(config, num_gpus=this_machine()["num_gpus"])
    log_libraries_in(folder)
    if not may_be_finished(folder, config.name):
        connect_while_importing("sweeps.commands.end_summary", "sweeps.execution.run_sweep")
    from sweeps.commands.end_summary import close
    from sweeps.execution.run_sweep import run_sweep

    with outlives_its_terminal(folder):
        console = terminal()
        end = run_sweep(config, results_folder=folder, console=console, kept_at=uri, retry=asked_again)
        close(end, console)


@explains_faults
def train(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE|FOLDER", help="Sweep file, or results folder of a sweep.", show_default=False),
    ],
    chosen: Annotated[
        str | None,
        typer.Option("--from", metavar="TRIAL", help="Source of the settings: best, a trial (trial-0003), or file."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Total training tokens: 100M, or 10x the sweep's.")
    ] = None,
    keep_settings: Annotated[
        bool, typer.Option("--keep-settings", help="Keep learning rate and batch size as found, whatever the length.")
    ] = False,
    overrides: Set = None,
    results: Results = None,
    verbose: Verbose = False,
    allow_code: AllowCode = False,
) -> None:
    """Train one configuration in full. Repeat to resume.

    The default settings are those of the sweep's best trial. Training resumes from the trial's checkpoint before the
    cooldown.
    """
    let_ray_speak(verbose)
    from sweeps.commands.end_summary import close
    from sweeps.execution.run_sweep import run_sweep
    from sweeps.lanes.library_logs import log_libraries_in
    from sweeps.planning.full_training import asked_length, plan_training

    console = terminal()
    beside_the_sweep = str(path.absolute().parent) if path.is_dir() else None
    folder, uri = results_location(results or beside_the_sweep)
    sweep = plan_training(
        path,
        overrides or (),
        chosen=chosen,
        length=None if tokens is None else asked_length(tokens),
        keep_settings=keep_settings,
        results_folder=folder,
        console=console,
        allow_code=allow_code,
    )
    log_libraries_in(folder)
    with outlives_its_terminal(folder):
        close(run_sweep(sweep, results_folder=folder, console=console, kept_at=uri), console)
