"""What stands in a results folder before a sweep is opened."""

from pathlib import Path

import pytest

from sweeps.records.results_folder import may_be_finished


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
