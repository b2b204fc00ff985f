"""Which state of which repository a command was given in."""

import subprocess
from pathlib import Path

_MAX_FILES = 20


def git_state(folder: Path) -> dict[str, str]:
    """What git says of a folder; empty when it is no checkout, or there is no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no").splitlines()
    names = [line.strip().split(maxsplit=1)[-1] for line in changed[:_MAX_FILES]]
    more = f" and {len(changed) - _MAX_FILES} more" if len(changed) > _MAX_FILES else ""
    state = {
        "commit": commit,
        "described as": _git(folder, "describe", "--always", "--dirty", "--tags"),
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "remote": _git(folder, "config", "--get", "remote.origin.url"),
        "last commit": _git(folder, "log", "-1", "--format=%cs %s"),
        "changed since": (", ".join(names) + more) if names else "nothing",
    }
    return {name: value for name, value in state.items() if value}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # No git, or a repository on a disk that does not answer: the report says that it does not know.
    return done.stdout.rstrip() if done.returncode == 0 else ""
