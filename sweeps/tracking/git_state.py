"""The git state of the folder in which a command runs."""

import subprocess
from pathlib import Path

from data_pipeline.schema.redaction import redact_url

_MAX_FILES = 20


def git_state(folder: Path) -> dict[str, str]:
    """Commit, branch, remote and changes of a folder; empty outside a checkout or without git."""
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
        "remote": redact_url(_git(folder, "config", "--get", "remote.origin.url")),
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
        return ""  # No git, or a disk that does not respond: the report shows the state as unknown.
    return done.stdout.rstrip() if done.returncode == 0 else ""
