"""Keeps secrets in the arguments of a command from other users of the machine."""

import json
import os
import sys

from data_pipeline.schema.redaction import redact_url

_ARGUMENTS = "PRETUNE_ARGUMENTS"
"""Environment variable that hands the arguments to the process itself. Children do not inherit it."""


def hide_secret_arguments() -> None:
    """Start this process again with redacted arguments if one of them holds the secret of a URL.

    `ps` shows the arguments of a process to every user, and Ray writes them into its table of jobs. The environment of
    a process is shown to its own user alone. `sys.argv` keeps the arguments as given.
    """
    handed = os.environ.pop(_ARGUMENTS, None)
    if handed is not None:
        sys.argv[1:] = json.loads(handed)
        return
    shown = [redact_url(argument) for argument in sys.orig_argv]
    if shown != sys.orig_argv:
        sys.stdout.flush()
        os.execve(sys.executable, shown, os.environ | {_ARGUMENTS: json.dumps(sys.argv[1:])})
