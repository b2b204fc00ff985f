"""What bad input gets: one clear paragraph, exit code 2, no traceback, nothing started."""

import socket
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner, Result

from sweep_examples import TINY
from sweeps.commands.cli import app

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("no_ray_left")]


def sweep(file: Path, *arguments: str, results: Path) -> Result:
    return CliRunner().invoke(app, ["sweep", str(file), "--results", str(results), *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def check_refused(result: Result, results: Path, *expected: str) -> None:
    """Exit code 2, the words, no traceback, no trial."""
    assert result.exit_code == 2, result.output
    for words in expected:
        assert words in result.output
    assert "Traceback" not in result.output
    assert list(results.glob("*/trials")) == []


def test_five_mistakes_come_at_once_and_nothing_is_started(tmp_path: Path, file: Path) -> None:
    text = TINY.replace("encoder", "encodr").replace("width", "widht").replace("5%", "500%")
    file.write_text(text.replace("trials: 6", "trials: 0").replace("training.batch_size", "training.batch_sise"))
    result = sweep(file, results=tmp_path / "results")
    check_refused(
        result,
        tmp_path / "results",
        "has 5 faults",
        "line 4: model.family = 'encodr'",
        "line 4: model.widht: is not a setting; did you mean width?",
        "line 2: corpus.holdout = '500%'",
        "line 8: search.training.batch_sise",
        "line 10: budget.trials = 0",
    )
    assert not ray.is_initialized()
    assert not (tmp_path / "results").exists()


def test_a_missing_corpus_is_said_with_its_path(tmp_path: Path, file: Path) -> None:
    result = sweep(file, "--set", f"corpus.path={tmp_path / 'nowhere.csv'}", results=tmp_path / "results")
    check_refused(result, tmp_path / "results", "nowhere.csv")


@pytest.mark.ray
def test_an_empty_corpus_is_said(tmp_path: Path, file: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = sweep(file, "--set", f"corpus.path={tmp_path / 'empty.txt'}", results=tmp_path / "results")
    check_refused(result, tmp_path / "results", "empty.txt")


def test_a_results_folder_that_cannot_be_written_is_said(tmp_path: Path, file: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    result = sweep(file, results=tmp_path / "occupied" / "results")
    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert "--results FOLDER" in result.output


def test_an_mlflow_server_that_does_not_answer_is_said_before_training(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    result = sweep(file, results=tmp_path / "results")
    check_refused(result, tmp_path / "results", f"MLflow at http://127.0.0.1:{port} cannot be used")


@pytest.mark.ray
def test_a_corpus_of_which_every_row_is_rejected_is_said_with_the_reasons(tmp_path: Path, file: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": ""}\n' * 20)
    result = sweep(
        file,
        "--set",
        f"corpus.path={tmp_path / 'bad.jsonl'}",
        "--set",
        "corpus.text=text",
        results=tmp_path / "results",
    )
    check_refused(result, tmp_path / "results", "bad.jsonl", "20")
