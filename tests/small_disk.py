"""A disk of a few megabytes: a file system of its own in memory, which a test fills and empties."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @property
    def used_bytes(self) -> int:
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def fill(self, *, leave: int) -> None:
        """Leave so many bytes free."""
        with open(self._filler, "ab") as file:
            file.write(bytes(max(0, self.free_bytes - leave)))

    def make_room(self) -> None:
        """Remove what `fill` has written."""
        self._filler.unlink()


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """Mount a disk of this size at an empty folder; a test without the right to do so is skipped."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True).returncode:
        pytest.skip("no right to mount (run as root)")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
