"""What all commands share: exit codes, options, the terminal, and how a user's mistake ends."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlparse

import typer
from rich.console import Console

from data_pipeline.schema.user_errors import InputFault

EXIT_FAULT = 2
"""An input is wrong; nothing was started."""
EXIT_NOTHING_COMPLETED = 3
"""The sweep came to its end, and no trial completed."""
EXIT_INCOMPLETE = 4
"""Trials were given up after their workers were lost; the same command tries them again."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, or SIGTERM; the same command resumes."""

VERBOSE = "PRETUNE_VERBOSE"
"""Environment variable; set: Ray and its workers speak on the terminal."""

_PIPED_WIDTH = 160
_JOB_FOLDERS = "working_dir_files"
"""Folder of Ray under which the working folders of submitted jobs stand."""

File = Annotated[Path, typer.Argument(help="Sweep file (YAML).", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as corpus.path=my.csv. May be repeated."),
]
Results = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="FOLDER",
        help="Where results go, also s3://... Default: $PRETUNE_RESULTS, else results; ~/pretune/results in a Ray job.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print what Ray and its workers say.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def explains_faults(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends in one paragraph and exit code 2, never in a traceback."""

    @wraps(command)
    def explained(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputFault as fault:
            Console(stderr=True).print(f"pretune: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_FAULT) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("pretune: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return explained


def terminal() -> Console:
    """Where a command prints. Piped or in a log nothing folds: tables are wide, and a reader greps lines."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)


def let_ray_speak(verbose: bool) -> None:
    """Before anything of Ray is imported: whether it and its workers print on the terminal."""
    if verbose:
        os.environ[VERBOSE] = "1"


def print_json(value: Any) -> None:
    """One line that a script reads."""
    import json

    typer.echo(json.dumps(value, ensure_ascii=False))


def results_location(given: str | None) -> tuple[Path, str | None]:
    """The folder where results go, as given, else as $PRETUNE_RESULTS says, else `results` below the current folder;
    and the URI where they are kept, if one is given: the folder is then this machine's working copy.

    A submitted job stands in a copy of the working folder that Ray makes for it and throws away: there the home folder
    replaces the current one.
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
    """The folder of results on this machine; see `results_location`."""
    return results_location(given)[0]
