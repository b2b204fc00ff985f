"""Commands of pretune as a shell takes them: quoted, and with the results folder where it is not the default."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.schema.redaction import redact

_JOB_FOLDERS = "working_dir_files"
"""Ray's folder that holds the working folders of submitted jobs."""


def default_results() -> str:
    """Results folder or URI of a command without --results: $PRETUNE_RESULTS, else `results` below the current folder.

    A submitted job runs in a copy of the working folder that Ray deletes afterwards; its default lies below the home
    folder instead.
    """
    is_copy = _JOB_FOLDERS in Path.cwd().parts
    return os.environ.get("PRETUNE_RESULTS") or (os.path.expanduser("~/pretune/results") if is_copy else "results")


def command_line(*words: str | Path, results: str | Path | None = None) -> str:
    """A command to print, such as `pretune sweep 'my file.yaml' --results '/big disk/results'`.

    Args:
        words: Command and arguments; secrets of URLs in them are masked.
        results: Results folder or URI that the command needs; None: it takes none.
    """
    given: Sequence[str | Path] = words
    if results is not None and not _is_default(str(results)):
        given = [*words, "--results", results]
    return shlex.join(["pretune", *(redact(str(word)) for word in given)])


def _is_default(results: str) -> bool:
    default = default_results()
    is_uri = "://" in results or "://" in default
    return results == default or (not is_uri and Path(results).absolute() == Path(default).absolute())
