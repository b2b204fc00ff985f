"""Links that somebody planted in a shared results folder, at every name that a sweep will write itself."""

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from command import ROOT
from data_pipeline.files.own_files import PlantedFileError, make_folder
from sweep_examples import record
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.records.folder_mirror import Mirror
from sweeps.records.results_folder import check_writable
from sweeps.records.sweep_lock import hold
from sweeps.records.trial_records import TrialStore
from sweeps.tracking.mlflow_store import MlflowStore


def _report(results: Path) -> None:
    TrialStore(results / "trials").append_report(record(1), {"tokens": 1.0})


def _measure(results: Path) -> None:
    KeptMeasurements(results / "cpu.json", OfShape, what="speeds").add({"a": OfShape(shape="a")})


def _lock(results: Path) -> None:
    with hold(results / ".lock", say=print):
        pass


@pytest.mark.parametrize(
    ("name", "act"),
    [
        (".lock", _lock),
        ("trials/trial-0001/reports.jsonl", _report),
        ("cpu.lock", _measure),
        ("mlflow.db", MlflowStore),
        (".mlflow.lock", MlflowStore),
    ],
)
def test_a_planted_link_is_refused_with_its_name_and_its_target_is_not_changed(
    tmp_path: Path, name: str, act: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results, thesis = tmp_path / "results", tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    (results / name).parent.mkdir(parents=True)
    (results / name).symlink_to(thesis)
    with pytest.raises(PlantedFileError, match=f"{name} is a link to .*thesis.tex"):
        act(results)
    assert thesis.read_text() == "years of work"


def test_probing_a_folder_makes_no_file_behind_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / f".probe-{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_replaces_a_planted_link(tmp_path: Path) -> None:
    there, here, thesis = tmp_path / "there", tmp_path / "here", tmp_path / "thesis.tex"
    for folder in (there, here):
        folder.mkdir()
    (there / "trial.json").write_text("{}")
    thesis.write_text("years of work")
    for name in (".fetching-trial.json", "trial.json"):
        (here / name).symlink_to(thesis)
    Mirror(here, there.as_uri()).pull()
    assert (here / "trial.json").read_text() == "{}"
    assert not (here / "trial.json").is_symlink()
    assert thesis.read_text() == "years of work"


def test_links_in_a_results_folder_are_named_and_not_uploaded(tmp_path: Path) -> None:
    here, there, said = tmp_path / "here", tmp_path / "there", list[str]()
    here.mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    (here / "trials.csv").write_text("1")
    (here / "stolen.csv").symlink_to(tmp_path / "private" / "key")
    (here / "stolen").symlink_to(tmp_path / "private")
    with Mirror(here, there.as_uri()).following(say=said.append):
        pass
    assert [path.name for path in there.rglob("*") if path.is_file()] == ["trials.csv"]
    assert said == [f"2 links in {here} are not followed and not uploaded: stolen, stolen.csv"]


def test_folders_below_the_home_folder_are_made_for_the_user_alone_and_shared_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o002)
    try:
        make_folder(tmp_path / "pretune" / "mirrored" / "bucket")
        make_folder(tmp_path / "team" / "results")
    finally:
        os.umask(before)
    assert (tmp_path / "pretune").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "team" / "results").stat().st_mode & 0o777 == 0o775


_WRITES = {"w", "wb", "a", "ab", "x", "xb", "r+b", "w+b"}
_NEW_FOLDERS_ONLY = {
    # They write into a folder that their callers have just made with `fresh_folder`, `mkdir` or `tempfile`.
    "core/model_files/adapter_folder.py",
    "core/model_files/checkpoint.py",
    "core/model_files/given_folder.py",
    "core/model_files/huggingface.py",
    "data_pipeline/preparation/node_copies.py",
    "sweeps/tracking/mlflow_model.py",
    "sweeps/tracking/ui_login.py",
    "sweeps/trained_models/winner_export.py",
}


def _plain_writes(source: str) -> list[str]:
    """Calls in a source that write a file without an opener of own_files."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        modes = {arg.value for arg in call.args if isinstance(arg, ast.Constant)} & _WRITES
        is_opened = any(word.arg == "opener" for word in call.keywords)
        if name in ("write_text", "write_bytes", "FileLock", "FileHandler") or (
            name == "open" and modes and not is_opened
        ):
            found.append(f"line {call.lineno}: {name}")
    return found


def test_every_file_that_is_written_by_name_is_opened_without_following_a_link() -> None:
    assert _plain_writes('Path("a").open("w")\nopen("b", "a")\nopen("c", "w", opener=fresh)') == [
        "line 1: open",
        "line 2: open",
    ]
    sources = [path for package in ("data_pipeline", "core", "sweeps") for path in (ROOT / package).rglob("*.py")]
    names = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sources}
    others = {name: found for name, text in names.items() if (found := _plain_writes(text))}
    assert set(others) - {"data_pipeline/files/own_files.py"} == _NEW_FOLDERS_ONLY, others
