"""Content of a results folder before a sweep is opened."""

import os
from pathlib import Path

import pytest

from sweep_examples import tiny_sweep
from sweeps.records.results_folder import SweepFolder, ended_sweeps, may_be_finished


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ('{"status": "finished"}', True),
        ('{"status": "interrupted"}', False),
        ('{"status": "fini', False),
        ("[]", False),
        ("{}", False),
    ],
)
def test_only_a_summary_that_says_so_makes_a_sweep_finished(tmp_path: Path, summary: str, expected: bool) -> None:
    (tmp_path / "swept-00000000").mkdir()
    (tmp_path / "swept-00000000" / "summary.json").write_text(summary)
    assert may_be_finished(tmp_path, "swept") is expected
    assert not may_be_finished(tmp_path, "another")


def test_a_folder_that_is_not_there_holds_nothing_finished(tmp_path: Path) -> None:
    assert not may_be_finished(tmp_path / "nowhere", "swept")


def test_ended_sweeps_of_a_name_come_newest_first_without_those_of_longer_names_or_broken_summaries(
    tmp_path: Path,
) -> None:
    summaries = {"a-1": '{"name": "a"}', "a-2": '{"name": "a"}', "a-b-1": '{"name": "a-b"}', "a-3": '{"name": "a'}
    for age_s, (folder, text) in enumerate(summaries.items()):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "summary.json").write_text(text)
        os.utime(tmp_path / folder / "summary.json", (1e9 - age_s, 1e9 - age_s))
    assert [folder.name for folder, _ in ended_sweeps(tmp_path, "a")] == ["a-1", "a-2"]
    assert [folder.name for folder, _ in ended_sweeps(tmp_path, "a-b")] == ["a-b-1"]


@pytest.mark.parametrize("name", ["/nowhere/a", "../a", "b/a"])
def test_a_path_is_no_name_of_a_sweep(tmp_path: Path, name: str) -> None:
    assert ended_sweeps(tmp_path, name) == []


def test_a_summary_that_a_lost_machine_has_cut_anywhere_does_not_keep_its_sweep_from_going_on(tmp_path: Path) -> None:
    folder, said = SweepFolder(tmp_path, tiny_sweep(), "0" * 64), list[str]()
    folder.create()
    assert folder.summary(said.append) is None
    whole = b'{"status": "finished", "wall_s": 12.5}'
    file = folder.path / "summary.json"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert folder.summary(said.append) is None
    assert said == [f"summary  {file} is damaged; the end of this run writes it again"] * len(whole)
    file.write_bytes(whole)
    assert folder.summary(said.append) == {"status": "finished", "wall_s": 12.5}
