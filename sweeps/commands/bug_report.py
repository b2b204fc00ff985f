"""A bug of pretune as its user sees it: the traceback, and a file to send with what explains it."""

import os
import platform
import shlex
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_pipeline.files.own_files import fresh, private_temp_folder
from data_pipeline.schema.redaction import redact
from data_pipeline.schema.terminal_text import echo
from data_pipeline.schema.user_errors import first_line

_EXPLAINING = ("pretune", "ray", "torch", "mlflow", "pydantic")
_LONGEST_PATH = 4000


def report_bug(error: Exception) -> None:
    """Print the traceback on stderr, then say that this is a bug and which file to send. Secrets of URLs are masked."""
    shown = redact("".join(traceback.format_exception(error)))
    echo(shown, end="", file=sys.stderr)
    words = f"pretune: this is a bug of pretune, no mistake of yours: {type(error).__name__}: {first_line(error)}."
    try:
        path = _written(shown)
    except OSError as problem:
        echo(f"{words} Please report it with the lines above ({first_line(problem)}).", file=sys.stderr)
    else:
        echo(f"{words} Please report it and send {path}.", file=sys.stderr)


def _written(shown: str) -> Path:
    path = (
        private_temp_folder("pretune", longest=_LONGEST_PATH)
        / f"bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    )
    facts = [
        f"command   {redact(shlex.join(['pretune', *sys.argv[1:]]))}",
        f"python    {platform.python_version()} on {platform.platform()}",
        f"versions  {', '.join(f'{name} {_version(name)}' for name in _EXPLAINING)}",
    ]
    with open(path, "w", encoding="utf-8", errors="backslashreplace", opener=fresh) as file:
        file.write("\n".join([*facts, "", shown]))
    return path


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
