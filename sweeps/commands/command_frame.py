"""The frame of every command: exit codes, shared options, the terminal, and the report of a user's mistake."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlparse

import typer

from data_pipeline.schema.redaction import redact
from data_pipeline.schema.terminal_text import echo, json_line
from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.terminal import Terminal
from sweeps.records.printed_commands import default_results

EXIT_FAULT = 2
"""An input is invalid, or the machine or the network failed; the message says how to mend it."""
EXIT_NOTHING_COMPLETED = 3
"""The sweep finished, and no trial completed."""
EXIT_INCOMPLETE = 4
"""Trials were given up after they lost their workers; the same command retries them."""
EXIT_PARTS_MISSING = 5
"""The sweep finished, and a part of its results could not be made, or MLflow lacks records; the same command makes the
part, or sends them."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, SIGTERM or SIGHUP; the same command resumes."""

VERBOSE = "PRETUNE_VERBOSE"
"""Environment variable; if set, Ray and its workers print on the terminal, and errors are told with tracebacks."""

_PIPED_WIDTH = 160
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
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let the code of model.class run. Read it first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def explains_faults(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command: a mistake of the user, or a fault of the machine or the network, is told in one paragraph.

    It ends with exit code 2 and without a traceback. An error of unknown kind passes: it is a bug.
    """

    @wraps(command)
    def explained(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Exception as error:
            if not is_told(error):
                raise
            raise typer.Exit(EXIT_FAULT) from None
        except KeyboardInterrupt:
            Terminal(stderr=True).print("pretune: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return explained


def is_told(error: Exception) -> bool:
    """Print an error of a known kind as one paragraph on stderr; False: its kind is not known."""
    from sweeps.commands.known_errors import sentence_of

    sentence = sentence_of(error)
    if sentence is None:
        return False
    if os.environ.get(VERBOSE) and not isinstance(error, InputFault):
        echo(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    _print_fault(redact(sentence))
    return True


def _print_fault(fault: str) -> None:
    """Print a fault in red. Its later lines are indented: a name with a line feed cannot forge a line of ours."""
    first, *rest = fault.split("\n")
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

    The folder is the one given, else that of `default_results`. With a URI it is this machine's working copy.
    """
    location = given or default_results()
    if "://" not in location:
        return Path(location), None
    if location.startswith("file://"):
        return Path(unquote(urlparse(location).path)), None
    from sweeps.records.remote_results import working_folder

    return working_folder(location), location


def results_folder(given: str | None) -> Path:
    """Results folder on this machine; see `results_location`."""
    return results_location(given)[0]
