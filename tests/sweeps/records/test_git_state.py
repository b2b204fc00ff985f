"""The git state of a folder from strangers: none of the commands that its files name is run."""

import subprocess
from pathlib import Path

import pytest

from sweeps.records.git_state import git_state

_ME = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *_ME, *arguments], cwd=folder, check=True, capture_output=True)


def _checkout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "sweep.yaml").write_text("name: a\n")
    (folder / ".gitattributes").write_text("*.yaml filter=planted diff=planted\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        _git(folder, *arguments)
    (folder / "sweep.yaml").write_text("name: b\n")
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A program that leaves a file beside itself."""
    path = tmp_path / "canary.sh"
    path.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$(basename $0 .sh)\ncat\n")
    path.chmod(0o755)
    return path


def _has_run(canary: Path) -> bool:
    found = canary.with_name("ran-canary")
    has_run = found.exists()
    found.unlink(missing_ok=True)
    return has_run


@pytest.mark.parametrize(
    ("setting", "command"),
    [
        ("core.fsmonitor", "status"),
        ("filter.planted.clean", "status"),
        ("filter.planted.process", "status"),
        ("filter.plan=ted.clean", "status"),
        ("gpg.program", "log --show-signature"),
        ("diff.external", "diff"),
        ("diff.planted.textconv", "diff"),
        ("core.pager", "--paginate log"),
        ("alias.planted", "planted"),
    ],
)
def test_no_command_of_a_planted_git_config_is_run(tmp_path: Path, canary: Path, setting: str, command: str) -> None:
    folder = _checkout(tmp_path / "unpacked")
    (folder / ".git" / "info" / "attributes").write_text("sweep.yaml filter=plan=ted\n" * ("=" in setting))
    _git(folder, "config", "log.showSignature", "true")
    _git(folder, "config", setting, f"!{canary}" if setting.startswith("alias") else str(canary))
    state = git_state(folder)
    assert not _has_run(canary)
    # A filter with such a name cannot be switched off, so nothing is asked.
    assert state.get("changed since") == (None if "=" in setting else "sweep.yaml")
    if setting in ("core.fsmonitor", "filter.planted.clean", "filter.plan=ted.clean", "diff.external", "alias.planted"):
        # The plant is a real one.
        subprocess.run(["git", *command.split()], cwd=folder, capture_output=True)
        assert _has_run(canary)


def test_no_hook_of_a_planted_repository_is_run(tmp_path: Path, canary: Path) -> None:
    folder = _checkout(tmp_path / "unpacked")
    (folder / ".git" / "hooks").mkdir(exist_ok=True)
    (folder / ".git" / "hooks" / "post-index-change").symlink_to(canary)
    _git(folder, "update-index", "--index-version", "4")
    (tmp_path / "ran-post-index-change").unlink()
    (folder / ".gitattributes").touch()
    assert git_state(folder)["commit"]
    assert not (tmp_path / "ran-post-index-change").exists()


def test_no_command_of_a_planted_submodule_is_run(tmp_path: Path, canary: Path) -> None:
    folder, part = _checkout(tmp_path / "unpacked"), _checkout(tmp_path / "part")
    _git(folder, "submodule", "add", "-q", str(part), "part")
    _git(folder / "part", "config", "core.fsmonitor", str(canary))
    assert git_state(folder)["commit"]
    assert not _has_run(canary)
    subprocess.run(["git", "status"], cwd=folder, capture_output=True)
    assert _has_run(canary)


def test_no_command_of_a_bare_repository_hidden_in_a_folder_is_run(tmp_path: Path, canary: Path) -> None:
    bare = _checkout(tmp_path / "unpacked") / ".git"
    for name, value in (("core.bare", "false"), ("core.worktree", ".."), ("core.fsmonitor", str(canary))):
        _git(bare.parent, "config", name, value)
    hidden = bare.rename(tmp_path / "text")
    git_state(hidden)
    assert not _has_run(canary)


def test_a_planted_repository_that_lacks_objects_fetches_none(tmp_path: Path, canary: Path) -> None:
    folder = _checkout(tmp_path / "unpacked")
    canary.write_text(canary.read_text().replace("cat\n", ""))
    settings = {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{canary}",
        "protocol.ext.allow": "always",
    }
    for name, value in settings.items():
        _git(folder, "config", name, value)
    head = subprocess.run(["git", "rev-parse", "HEAD^{tree}"], cwd=folder, capture_output=True, text=True, check=True)
    tree = head.stdout.strip()
    (folder / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    git_state(folder)
    assert not _has_run(canary)
    subprocess.run(["git", "diff", "HEAD"], cwd=folder, capture_output=True)
    assert _has_run(canary)
