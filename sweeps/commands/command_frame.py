"""The frame of every command: exit codes, shared options, the terminal, and the report of a user's mistake."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlparse

import typer

from data_pipeline.schema.terminal_text import echo, json_line
from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.terminal import Terminal

EXIT_FAULT = 2
"""An input is invalid; nothing was started."""
EXIT_NOTHING_COMPLETED = 3
"""The sweep finished, and no trial completed."""
EXIT_INCOMPLETE = 4
"""Trials were given up after they lost their workers; the same command retries them."""
EXIT_PARTS_MISSING = 5
"""The sweep finished, and a part of its results could not be made; the same command makes it."""
EXIT_INTERRUPTED = 130
"""Ctrl-C or SIGTERM; the same command resumes."""

VERBOSE = "PRETUNE_VERBOSE"
"""Environment variable; if set, Ray and its workers print on the terminal."""

_PIPED_WIDTH = 160
_JOB_FOLDERS = "working_dir_files"
"""Ray's folder that holds the working folders of submitted jobs."""

File = Annotated[Path, typer.Argument(help="Sweep file (YAML).", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. corpus.path=my.csv. Repeatable."),
]
Results = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="FOLDER",
        help="Results folder or URI (s3://..). Default: $PRETUNE_RESULTS or results; ~/pretune/results in a Ray job.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print the output of Ray and its workers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def explains_faults(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command: a user's mistake prints one paragraph and exits with code 2, without a traceback."""

    @wraps(command)
    def explained(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputFault as fault:
            _print_fault(fault)
            raise typer.Exit(EXIT_FAULT) from None
        except KeyboardInterrupt:
            Terminal(stderr=True).print("pretune: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return explained


def _print_fault(fault: InputFault) -> None:
    """Print a fault in red. Its later lines are indented: a name with a line feed cannot forge a line of ours."""
    first, *rest = str(fault).split("\n")
    console = Terminal(stderr=True)
    for line in (f"pretune: {first}", *(line if line.startswith("  ") else f"  {line}" for line in rest)):
        console.print(line, style="red", highlight=False, soft_wrap=True)


def terminal() -> Terminal:
    """Console for a command's output. Piped output is wide and does not wrap, so that lines can be searched."""
    return Terminal() if sys.stdout.isatty() else Terminal(width=_PIPED_WIDTH)


def let_ray_speak(verbose: bool) -> None:
    """Let Ray and its workers print on the terminal if `verbose`. Call it before the first import of Ray."""
    if verbose:
        os.environ[VERBOSE] = "1"


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    echo(json_line(value))


def results_location(given: str | None) -> tuple[Path, str | None]:
    """Results folder on this machine, and the URI that stores the results, if one is given.

    The folder is the one given, else $PRETUNE_RESULTS, else `results` below the current folder. With a URI it is this
    machine's working copy. A submitted job runs in a copy of the working folder that Ray deletes afterwards; its
    default lies below the home folder instead.
    """
    is_copy = _JOB_FOLDERS in Path.cwd().parts
    default = Path.home() / "pretune" / "results" if is_copy else Path("results")
    location = given or os.environ.get("PRETUNE_RESULTS") or str(default)
    if "://" not in location:
        return Path(location), None
    if location.startswith("file://"):
        return Path(unquote(urlparse(location).path)), None
    from sweeps.records.remote_results import working_folder

    return working_folder(location), location


def results_folder(given: str | None) -> Path:
    """Results folder on this machine; see `results_location`."""
    return results_location(given)[0]
