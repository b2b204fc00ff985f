"""From a folder of transformers and a labelled table to a classifier, by the command."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from transformers import pipeline
from typer.testing import CliRunner, Result

from command import ROOT
from small_models import exported
from sweeps.commands.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ("--classify", "animal", "--epochs", "6", "--batch-size", "16", "--learning-rate", "3e-3")
COLORS, ANIMALS = ("red", "old", "big"), ("cat", "dog")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("encoder"), "encoder")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which animal sees something; the class `dog` is the rarer one."""
    path = tmp_path_factory.mktemp("rows") / "sightings.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "animal"])
        for number in range(150):
            animal = ANIMALS[number % 5 < 2]
            first, second = COLORS[number % 3], COLORS[number // 3 % 3]
            writer.writerow([number, f"the {first} {animal} sees a {second} house {number % 11}", animal])
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def finetuned(encoder: Path, rows: Path, results: Path, *more: object) -> tuple[dict[str, object], Path]:
    done = run(encoder, rows, *SETTINGS, "--results", results, "--json", *more)
    assert done.exit_code == 0, done.output
    (folder,) = results.glob("sightings-animal-*")
    return json.loads(done.output), folder


@pytest.fixture(scope="module")
def done(encoder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    return finetuned(encoder, rows, tmp_path_factory.mktemp("results"), "--from-scratch")


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_pipeline_of_transformers_predicts_what_predictions_csv_says(
    done: tuple[dict[str, object], Path], rows: Path
) -> None:
    _, folder = done
    lines = rows.read_text().splitlines()
    said = predictions(folder)
    classify = pipeline("text-classification", model=str(folder / "best"), tokenizer=str(folder / "best"))
    theirs = classify([lines[int(row["line"]) - 1].split(",")[1] for row in said])
    assert [one["label"] for one in theirs] == [row["predicted"] for row in said]
    assert [one["score"] for one in theirs] == pytest.approx([float(row["probability"]) for row in said], abs=1e-5)


def test_metrics_are_those_of_the_predictions(done: tuple[dict[str, object], Path]) -> None:
    figures, folder = done
    said = predictions(folder)
    assert json.loads((folder / "metrics.json").read_text()) == figures
    assert len(said) == figures["num_rows_held_out"]
    right = Counter(row["label"] for row in said if row["label"] == row["predicted"])
    taken, true = Counter(row["predicted"] for row in said), Counter(row["label"] for row in said)
    assert figures["accuracy"] == pytest.approx(right.total() / len(said))
    f1 = {name: 2 * right[name] / (taken[name] + true[name]) for name in ANIMALS}
    assert figures["macro_f1"] == pytest.approx(sum(f1.values()) / 2)
    majority = figures["majority_class"]
    assert isinstance(majority, dict)
    assert majority["name"] == "cat"
    assert majority["accuracy"] == pytest.approx(true["cat"] / len(said))
    # The loop's own evaluation of the kept epoch, through other code, agrees; in bf16 a close call may be another.
    chosen = figures["chosen_run"]
    assert isinstance(chosen, dict)
    assert chosen["accuracy"] == pytest.approx(figures["accuracy"], abs=1.01 / len(said))
    assert chosen["macro_f1"] == pytest.approx(figures["macro_f1"], abs=2.02 / len(said))
    assert figures["accuracy"] > majority["accuracy"]


def test_equal_texts_stand_on_one_side_and_classes_are_counted_on_both(
    done: tuple[dict[str, object], Path], rows: Path
) -> None:
    figures, folder = done
    with rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    held_out = {int(row["line"]) - 2 for row in predictions(folder)}
    trained_texts = {row["text"] for number, row in enumerate(table) if number not in held_out}
    assert trained_texts.isdisjoint(table[number]["text"] for number in held_out)
    assert len({row["text"] for row in table}) < len(table)
    trained = Counter(row["animal"] for number, row in enumerate(table) if number not in held_out)
    classes = figures["classes"]
    assert isinstance(classes, list)
    assert {one["name"]: one["num_trained"] for one in classes} == trained
    assert {one["name"]: one["num_held_out"] for one in classes} == Counter(table[n]["animal"] for n in held_out)


def test_page_has_the_confusion_matrix_and_what_scratch_came_to(done: tuple[dict[str, object], Path]) -> None:
    figures, folder = done
    page = (folder / "report.html").read_text()
    assert 'aria-label="confusion-matrix"' in page
    assert 'aria-label="epochs"' in page
    assert "pretraining gains" in page
    assert (folder / "confusion.svg").read_text().startswith("<svg")
    scratch = figures["from_scratch"]
    assert isinstance(scratch, dict)
    assert {run["start"] for run in figures["runs"]} == {"pretrained", "from scratch"}  # type: ignore[attr-defined]
    assert not (folder / "runs").exists()


def test_mlflow_has_a_run_with_its_trainings_nested_under_it(done: tuple[dict[str, object], Path]) -> None:
    figures, folder = done
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pretune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (one for one in runs if one.data.tags["pretune.kind"] == "finetune")
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.data.metrics["final/accuracy"] == pytest.approx(figures["accuracy"])
    assert len(children) == 2
    curve = client.get_metric_history(children[0].info.run_id, "holdout/macro_f1")
    assert len({one.step for one in curve}) == 6  # epochs, on the axis of tokens
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} >= {"metrics.json", "confusion.svg", "model"}


def test_same_command_again_trains_nothing_and_says_the_same(
    done: tuple[dict[str, object], Path], encoder: Path, rows: Path
) -> None:
    figures, folder = done
    before = (folder / "metrics.json").stat().st_mtime_ns
    again, same = finetuned(encoder, rows, folder.parent, "--from-scratch")
    assert (again, same) == (figures, folder)
    assert (folder / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.long
def test_killed_fine_tuning_goes_on_and_comes_to_the_same(
    done: tuple[dict[str, object], Path], encoder: Path, rows: Path, tmp_path: Path
) -> None:
    figures, _ = done
    command = [str(encoder), str(rows), *SETTINGS, "--from-scratch", "--results", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "sweeps", "finetune", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run 2 of 2"):
                process.send_signal(signal.SIGKILL)
                break
    assert list(tmp_path.glob("*/metrics.json")) == []
    again = run(*command)
    assert again.exit_code == 0, again.output
    # The first run had come to its end, and is not trained a second time.
    assert "holdout loss" not in again.output.split("run 1 of 2")[1].split("run 2 of 2")[0]
    (found,) = tmp_path.glob("*/metrics.json")
    runs = json.loads(found.read_text())["runs"]
    assert [run["loss"] for run in runs] == pytest.approx([run["loss"] for run in figures["runs"]])  # type: ignore[attr-defined]


def test_every_mistake_is_one_line_before_any_training(tmp_path: Path, encoder: Path, rows: Path) -> None:
    decoder = exported(tmp_path / "decoder", "decoder")
    (tmp_path / "reshaped").mkdir()
    for file in encoder.iterdir():
        (tmp_path / "reshaped" / file.name).write_bytes(file.read_bytes())
    shape = json.loads((encoder / "config.json").read_text()) | {"hidden_size": 64}
    (tmp_path / "reshaped" / "config.json").write_text(json.dumps(shape))
    lonely = tmp_path / "lonely.csv"
    lonely.write_text(rows.read_text() + "999,the big fish sees,fish\n")
    one_class = tmp_path / "one.csv"
    one_class.write_text("\n".join(line for line in rows.read_text().splitlines() if "dog" not in line))
    cases = [
        ((decoder, rows, "--classify", "animal"), "--classify needs an encoder"),
        ((encoder, rows, "--classify", "animl"), "did you mean --classify animal?"),
        ((encoder, rows, "--classify", "animal", "--text", "txt"), "did you mean --text text?"),
        ((encoder, one_class, "--classify", "animal"), "one class only"),
        ((encoder, lonely, "--classify", "animal"), "--least-rows 2"),
        ((encoder, rows, "--classify", "animal", "--max-tokens", 1000), "is out of range; give 3 to 32"),
        ((tmp_path / "reshaped", rows, "--classify", "animal"), "cannot be loaded"),
        ((tmp_path, rows, "--classify", "animal"), "holds no trained model"),
        ((encoder, tmp_path / "nowhere.csv", "--classify", "animal"), "does not exist"),
    ]
    for arguments, words in cases:
        refused = run(*arguments, "--results", tmp_path / "results")
        assert refused.exit_code == 2, (arguments, refused.output)
        assert words in refused.output
        assert refused.output.count("\n") == 1, refused.output
    assert list((tmp_path / "results").glob("*/start")) == []


def test_folder_of_another_fine_tuning_is_not_written_over(tmp_path: Path, encoder: Path, rows: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused = run(encoder, rows, "--classify", "animal", "--results", tmp_path, "--out", tmp_path / "mine")
    assert refused.exit_code == 2
    assert "name a new folder" in refused.output
