"""Files of ours at names that others can foresee: a planted link never leads pretune to another file."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.files.own_files import (
    OwnLog,
    PlantedFileError,
    clear,
    fresh,
    fresh_folder,
    no_link,
    own_lock,
    private_temp_folder,
)
from data_pipeline.files.whole_files import write_atomically, write_whole


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    """A file of the user that a planted link points at."""
    path = tmp_path / "thesis.tex"
    path.write_text("years of work")
    return path


def _append(path: Path) -> None:
    with open(path, "a", encoding="utf-8", opener=no_link) as file:
        file.write("report")


def _log(path: Path) -> None:
    logger = logging.getLogger("planted")
    logger.addHandler(OwnLog(path, encoding="utf-8"))


def _lock(path: Path) -> None:
    with own_lock(path):
        pass


@pytest.mark.parametrize("write", [_append, _log, _lock])
def test_a_link_at_the_name_of_a_kept_file_is_refused_and_its_target_stays(
    tmp_path: Path, thesis: Path, write: Callable[[Path], None]
) -> None:
    planted = tmp_path / "reports.jsonl"
    planted.symlink_to(thesis)
    with pytest.raises(PlantedFileError, match=r"reports\.jsonl is a link to .*thesis\.tex, and pretune writes"):
        write(planted)
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("write", [_append, _lock])
def test_a_pipe_at_the_name_of_a_kept_file_is_refused_instead_of_waited_for(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    os.mkfifo(tmp_path / "reports.jsonl")
    with pytest.raises(PlantedFileError, match="is not a regular file"):
        write(tmp_path / "reports.jsonl")


@pytest.mark.parametrize(
    ("write", "partial"),
    [
        (lambda path: write_whole(path, b"new"), ".trial.json.{pid}.partial"),
        (lambda path: write_atomically(path, "new"), ".trial.json.{pid}"),
    ],
)
def test_a_file_written_whole_replaces_planted_links_and_their_targets_stay(
    tmp_path: Path, thesis: Path, write: Callable[[Path], None], partial: str
) -> None:
    path, planted = tmp_path / "trial.json", tmp_path / partial.format(pid=os.getpid())
    for link in (path, planted):
        link.symlink_to(thesis)
    write(path)
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert thesis.read_text() == "years of work"


def test_a_fresh_file_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "left").write_text("much longer than the new one")
    with open(tmp_path / "left", "w", encoding="utf-8", opener=fresh) as file:
        file.write("new")
    assert (tmp_path / "left").read_text() == "new"


def test_a_fresh_folder_replaces_a_link_to_a_folder_and_leaves_its_files(tmp_path: Path, thesis: Path) -> None:
    (tmp_path / ".best-partial").symlink_to(tmp_path)
    assert list(fresh_folder(tmp_path / ".best-partial").iterdir()) == []
    assert thesis.exists()
    clear(tmp_path / ".best-partial")
    assert not (tmp_path / ".best-partial").exists()


def test_a_private_folder_for_temporary_files_is_the_users_own_and_the_same_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_temp_folder("ray", longest=200)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder == private_temp_folder("ray", longest=200)
    assert private_temp_folder("ray", longest=len(str(tmp_path))).parent == Path("/tmp")


def test_a_folder_for_temporary_files_that_somebody_else_made_first_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir(mode=0o777)
    planted = tmp_path / f"ray-{os.getuid()}"
    planted.symlink_to(tmp_path / "theirs")
    first = private_temp_folder("ray", longest=200)
    planted.unlink()
    planted.mkdir(mode=0o755)
    second = private_temp_folder("ray", longest=200)
    assert planted not in (first, second)
    assert {folder.stat().st_mode & 0o777 for folder in (first, second)} == {0o700}


def test_a_log_that_cannot_be_opened_loses_its_lines_and_disturbs_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = OwnLog(tmp_path / "missing" / "ray.log", delay=True)
    log.handle(logging.makeLogRecord({"msg": "a line"}))
    assert capsys.readouterr().err == ""
