"""The git state of the folder in which a command runs.

The folder may come from a stranger, and a repository's own settings name commands that git runs. Git is called so that
it runs none of them.
"""

import os
import subprocess
from pathlib import Path

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
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all").splitlines()
    names = [line.strip().split(maxsplit=1)[-1] for line in changed[:_MAX_FILES]]
    more = f" and {len(changed) - _MAX_FILES} more" if len(changed) > _MAX_FILES else ""
    described = _git(folder, "describe", "--always", "--tags")
    state = {
        "commit": commit,
        # `describe --dirty` would look into submodules.
        "described as": f"{described}-dirty" if described and changed else described,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "remote": _git(folder, "config", "--get", "remote.origin.url"),
        "last commit": _git(folder, "log", "-1", "--format=%cs %s"),
        "changed since": (", ".join(names) + more) if names else "nothing",
    }
    return {name: value for name, value in state.items() if value}


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command; empty if it fails."""
    # Reading the settings runs nothing. Filters have names of the repository's choice, so each is switched off by name.
    filters = _output(folder, "config", "--null", "--name-only", "--get-regexp", r"^filter\.", settings=_NO_COMMANDS)
    blank = {name: "false" if name.endswith(".required") else "" for name in filters.split("\0") if name}
    return _output(folder, *arguments, settings=_NO_COMMANDS | blank).rstrip()


def _output(folder: Path, *arguments: str, settings: dict[str, str]) -> str:
    # By environment, because `-c name=value` ends a name at its first "=".
    first = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    environment = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    environment |= {f"GIT_CONFIG_KEY_{number}": name for number, name in enumerate(settings, start=first)}
    environment |= {f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(settings.values(), start=first)}
    environment["GIT_CONFIG_COUNT"] = str(first + len(settings))
    try:
        done = subprocess.run(
            ["git", "--no-pager", "--no-optional-locks", *arguments],
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # No git, or a disk that does not respond: the report shows the state as unknown.
    return done.stdout if done.returncode == 0 else ""
