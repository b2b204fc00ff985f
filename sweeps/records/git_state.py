"""The git state of the folder in which a command runs.

The folder may come from a stranger, and a repository's own settings name commands that git runs. Git is called so that
it runs none of them.
"""

import os
import subprocess
from functools import partial
from pathlib import Path

from data_pipeline.schema.redaction import redact_url

_MAX_FILES = 20

_NO_COMMANDS = {
    f"{section}.{name}": value
    for section, name, value in (
        ("core", "fsmonitor", "false"),
        ("core", "hooksPath", os.devnull),
        ("log", "showSignature", "false"),
        # A folder may hold a bare repository under any name; only a `.git` is looked at.
        ("safe", "bareRepository", "explicit"),
    )
}


def git_state(folder: Path) -> dict[str, str]:
    """Commit, branch, remote and changes of a folder; empty outside a checkout or without git.

    No command of the repository is run: no file monitor, hook, filter, signature program or transport, and submodules
    are not looked into. A file under a filter, as of Git LFS, therefore counts as changed once its time of change
    differs from git's index.
    """
    # Reading the settings runs nothing. Filters have names of the repository's choice, so each is switched off by name.
    filters = _output(folder, "config", "--null", "--name-only", "--get-regexp", r"^filter\.", settings=_NO_COMMANDS)
    blank = {name: "false" if name.endswith(".required") else "" for name in filters.split("\0") if name}
    if any("=" in name for name in blank):
        return {}  # git's option -c ends a name there, so this filter would run.
    git = partial(_output, folder, settings=_NO_COMMANDS | blank)
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all").splitlines()
    names = [line.strip().split(maxsplit=1)[-1] for line in changed[:_MAX_FILES]]
    more = f" and {len(changed) - _MAX_FILES} more" if len(changed) > _MAX_FILES else ""
    described = git("describe", "--always", "--tags")
    state = {
        "commit": commit,
        # `describe --dirty` would look into submodules.
        "described as": f"{described}-dirty" if described and changed else described,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "remote": redact_url(git("config", "--get", "remote.origin.url")),
        "last commit": git("log", "-1", "--format=%cs %s"),
        "changed since": (", ".join(names) + more) if names else "nothing",
    }
    return {name: value for name, value in state.items() if value}


def _output(folder: Path, *arguments: str, settings: dict[str, str]) -> str:
    """Output of a git command with these settings; empty if it fails."""
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    # A repository that lacks objects would fetch them, by a command of its choice.
    offline = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"}
    try:
        done = subprocess.run(
            ["git", "--no-pager", "--no-optional-locks", *options, *arguments],
            cwd=folder,
            env=os.environ | offline,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # No git, or a disk that does not respond: the report shows the state as unknown.
    return done.stdout.rstrip() if done.returncode == 0 else ""
