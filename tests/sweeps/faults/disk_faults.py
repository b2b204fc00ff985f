"""File systems that fill up or turn read-only while trial 2 trains: small mounts of their own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path

import pytest
from struck_sweep import StruckSweep

_MIB = 2**20
_SIZE = "256m"
"""More than the sweep needs."""
_FILLER = "filler"


def results_full(sweep: StruckSweep) -> None:
    """No room for the results, with MLflow's store among them."""
    _fills_up(sweep, _mounted(sweep, sweep.results))


def temporary_full(sweep: StruckSweep) -> None:
    """No room in TMPDIR; the files of Ray lie elsewhere."""
    folder = sweep.results.parent / "temporary"
    sweep.environment |= {"TMPDIR": str(folder), "RAY_TMPDIR": _short_folder(sweep)}
    _fills_up(sweep, _mounted(sweep, folder))


def tracking_full(sweep: StruckSweep) -> None:
    """No room for MLflow's store, which lies apart from the results."""
    folder = sweep.results.parent / "tracking"
    _mounted(sweep, folder)
    shutil.move(sweep.results / "mlflow.db", folder / "mlflow.db")
    sweep.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    _fills_up(sweep, folder)


def ray_full(sweep: StruckSweep) -> None:
    """No room for the files of Ray: its logs, sockets and spilled objects."""
    folder = Path(_short_folder(sweep))
    sweep.environment["RAY_TMPDIR"] = str(folder)
    _fills_up(sweep, _mounted(sweep, folder))


def read_only(sweep: StruckSweep) -> None:
    """The results lie on a disk whose errors make its file system read-only; it is mounted anew afterwards."""
    image = sweep.results.parent / "disk.ext4"
    with image.open("wb") as file:
        file.truncate(256 * _MIB)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image))

    def mount() -> None:
        _run("mount", "-o", "loop,errors=remount-ro", str(image), str(sweep.results))

    _moved(sweep, sweep.results, mount)
    device = Path(subprocess.check_output(["losetup", "-j", image], text=True).split(":")[0]).name
    sweep.start_and_train()
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    sweep.end()
    _run("umount", str(sweep.results))
    mount()
    sweep.start()


def _mounted(sweep: StruckSweep, folder: Path) -> Path:
    """The folder, on a file system of its own."""
    _moved(sweep, folder, lambda: _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)))
    return folder


def _moved(sweep: StruckSweep, folder: Path, mount: Callable[[], None]) -> None:
    """Mount a file system at a folder, which keeps its files."""
    if os.getuid() != 0:
        pytest.skip("no right to mount (root)")
    folder.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=sweep.results.parent))
    _run("cp", "-a", f"{folder}/.", str(aside))
    mount()
    sweep.at_end.append(lambda: _run("umount", "-l", str(folder)))
    _run("cp", "-a", f"{aside}/.", str(folder))


def _short_folder(sweep: StruckSweep) -> str:
    """A folder for Ray, whose sockets allow no long paths."""
    folder = tempfile.mkdtemp(prefix="full-", dir="/tmp")
    sweep.at_end.append(lambda: _run("rm", "-r", folder))
    return folder


def _fills_up(sweep: StruckSweep, folder: Path) -> None:
    """Another program takes all room while trial 2 trains, and gives it back when the command has ended."""
    sweep.start_and_train()
    filler = folder / _FILLER
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left on device"):
        _write_without_end(file)
    sweep.end()
    filler.unlink()
    sweep.start()


def _write_without_end(file: RawIOBase) -> None:
    while True:
        file.write(bytes(_MIB))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
