"""The command that examines a machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sweeps.commands.command_frame import AsJson, explains_faults, print_json, terminal
from sweeps.commands.terminal import Terminal

_EXIT_FAILED = 1


@explains_faults
def doctor(
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="Time in which checks may begin.")] = 10,
    write: Annotated[Path | None, typer.Option("--write", help="Also write the verdicts as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Examine this machine: its devices, memory and speed.

    Every claim about memory and numbers is tried on the device at hand. Exit code 1: a check failed.
    """
    from sweeps.doctor.machine_report import print_report, report_on_machine, write_report

    progress = Terminal(stderr=True)
    found = report_on_machine(minutes=minutes, say=lambda name: progress.print(f"checks   {name}", highlight=False))
    if write is not None:
        write_report(found, write)
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        print_report(found, terminal())
    if any(check.verdict == "fail" for check in found):
        raise typer.Exit(_EXIT_FAILED)
