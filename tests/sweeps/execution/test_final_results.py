"""Results at the end of a sweep are written whatever one of their parts does."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from command import run
from finished_results import sweep_folder
from sweep_examples import TINY
from sweeps.records.results_folder import MAP_FILE

SPACE = """search:
  model.width: {choice: [30, 32]}
  model.heads: {choice: [3, 4]}
  training.micro_batch_size: {choice: [auto]}
searcher: {method: grid}
budget: {trials: 6, tokens_per_trial: 4k}
early_stopping: {method: none}
"""
VALID = {(30, 3), (32, 4)}


@pytest.mark.slow
@pytest.mark.ray
def test_a_part_that_cannot_be_written_is_named_and_the_same_command_makes_it_later(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY[: TINY.index("search:")] + SPACE)
    code, output = run("sweep", file, "--results", tmp_path)
    assert code == 0, output
    assert "2 of 4 combinations of model.width, model.heads are valid; the others are never launched" in output
    folder = sweep_folder(tmp_path, "tiny")
    shapes = {(row["model.width"], row["model.heads"]) for row in trials_of(folder)}
    assert shapes == {(str(width), str(heads)) for width, heads in VALID}
    summary = summary_of(folder)
    assert summary["memory_verdicts_with_proposals"]["not a valid combination"] == 2
    assert summary["parts_missing"] == []

    (folder / "summary.json").unlink()
    for name in ("report.html", MAP_FILE, "trials.csv"):
        (folder / name).unlink()
    for name in ("report.html", MAP_FILE):
        (folder / name).mkdir()
    code, output = run("sweep", file, "--results", tmp_path)
    assert code == 5, output
    for name in ("report.html", MAP_FILE):
        assert f"missing  {name} could not be made: IsADirectoryError" in output
    assert "again    the same command makes the missing parts: " in output
    assert "Traceback" not in output
    assert len(summary_of(folder)["parts_missing"]) == 2
    assert len(trials_of(folder)) == len(VALID)

    for name in ("report.html", MAP_FILE):
        (folder / name).rmdir()
    code, output = run("sweep", file, "--results", tmp_path)
    assert code == 0, output
    assert summary_of(folder)["parts_missing"] == []
    assert (folder / "report.html").is_file()
    assert (folder / MAP_FILE).is_file()


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary
