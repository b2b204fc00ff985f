"""A fine-tuning for classes from a file: what it says, what it tries, and what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from command import ROOT
from small_models import exported
from sweeps.commands.cli import app
from sweeps.finetuning.finetune_config import FinetuneConfig
from sweeps.finetuning.finetune_file import FINETUNING, RESOLVED_FILE, dump_finetuning
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.settings_file import resolve_settings
from sweeps.settings.yaml_lines import read_yaml

pytestmark = pytest.mark.usefixtures("one_thread")

FILE = """\
name: animals
purpose: Which animal sees a house.
objective: classification
start: {weights_of: MODEL}
corpus: {path: sightings.csv, label: animal, holdout: 25%}
training: {batch_size: 16, learning_rate: 3e-3, epochs: 4}
search:
  training.learning_rate: {choice: [1e-5, 3e-3]}
  training.epochs: {choice: [2, 4]}
sizes:
  full:
    training: {batch_size: 64}
    search: {training.epochs: {choice: [8]}}
"""


def resolve(text: str, *overrides: str) -> FinetuneConfig:
    return resolve_settings(read_yaml(text), FINETUNING, overrides, source="animals.yaml")


def faults_of(text: str, *overrides: str) -> str:
    with pytest.raises(SettingsFileError) as caught:
        resolve(text, *overrides)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model, labelled rows and a file stand."""
    folder = tmp_path_factory.mktemp("animals")
    model = exported(folder / "encoder", "encoder")
    rows = [f"the old {animal} sees a house {number},{animal}" for number in range(60) for animal in ("cat", "dog")]
    (folder / "sightings.csv").write_text("\n".join(["text,animal", *rows]) + "\n")
    text = FILE.replace("MODEL", str(model)).replace("sightings.csv", str(folder / "sightings.csv"))
    (folder / "animals.yaml").write_text(text)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def figures_of(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(done.output)
    return figures


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    return figures_of(folder / "animals.yaml", "--results", folder / "results")


def came_out(folder: Path) -> Path:
    (found,) = (folder / "results").glob("animals-*")
    return found


def test_every_combination_of_a_search_is_trained_and_the_lowest_holdout_loss_is_kept(
    figures: dict[str, Any], folder: Path
) -> None:
    tried = {(run["learning_rate"], run["epochs"]) for run in figures["runs"]}
    assert tried == {(1e-5, 2.0), (1e-5, 4.0), (3e-3, 2.0), (3e-3, 4.0)}
    assert figures["chosen_run"]["loss"] == min(run["loss"] for run in figures["runs"])
    assert {run["batch_size"] for run in figures["runs"]} == {16}
    page = (came_out(folder) / "report.html").read_text()
    assert "Which animal sees a house." in page
    assert 'aria-label="confusion-matrix"' in page


@pytest.mark.long
def test_a_file_comes_to_the_same_as_its_options(figures: dict[str, Any], folder: Path) -> None:
    by_options = figures_of(
        *(folder / "encoder" / "best", folder / "sightings.csv", "--classify", "animal", "--holdout", "0.25"),
        *("--batch-size", 16, "--learning-rate", "1e-5", "--learning-rate", "3e-3", "--epochs", 2, "--epochs", 4),
        *("--results", folder / "by-options"),
    )
    assert by_options["confusions"] == figures["confusions"]
    assert [run["loss"] for run in by_options["runs"]] == pytest.approx([run["loss"] for run in figures["runs"]])


def test_the_resolved_file_beside_the_results_means_the_same_and_trains_nothing_again(
    figures: dict[str, Any], folder: Path
) -> None:
    again = figures_of(came_out(folder) / RESOLVED_FILE, "--results", folder / "results")
    assert again == figures
    assert "nothing was trained" in run(folder / "animals.yaml", "--results", folder / "results").output


def test_a_size_lays_its_differences_over_the_file_and_resolves_to_the_same() -> None:
    config = resolve(FILE, "size=full", "training.dropout=0")
    assert (config.size, config.training.batch_size, config.training.dropout) == ("full", 64, 0.0)
    assert config.settings().epochs == (8.0,)
    assert config.settings().learning_rates == (1e-5, 3e-3)
    assert resolve(dump_finetuning(config)) == config


def test_the_resolved_file_has_no_token_of_a_url_and_user_information_is_refused() -> None:
    url = "https://host/rows.csv?token=CANARY"
    config = resolve(FILE, f"corpus.path={url}")
    assert config.corpus.path == url
    assert "path: https://host/rows.csv?token=***\n" in dump_finetuning(config)
    told = faults_of(FILE, "corpus.path=s3://KEY:CANARY@bucket/rows.csv")
    assert "corpus.path = 's3://***@bucket/rows.csv': holds a user or a password" in told


def test_a_range_is_tried_at_its_ends_and_evenly_between_them() -> None:
    swept = FILE.replace("{choice: [1e-5, 3e-3]}", "{log_uniform: [1e-5, 1e-3]}")
    assert resolve(swept).settings().learning_rates == pytest.approx((1e-5, 1e-4, 1e-3))
    assert len(resolve(swept, "grid_points=5").settings().learning_rates) == 5


def test_all_faults_of_a_file_are_told_at_once_with_line_rule_and_remedy() -> None:
    message = faults_of(
        FILE.replace("weights_of: MODEL", "weight_of: x")
        .replace("label: animal", "labl: animal")
        .replace("choice: [2, 4]", "choice: [2, -4]")
        .replace("training.learning_rate: {choice", "training.learning_rat: {choice")
        .replace("batch_size: 64", "batch_size: many")
    )
    assert "line 4: start.weight_of: is not a setting; did you mean weights_of?" in message
    assert "line 5: corpus.label: is missing; give it: Column of the classes" in message
    assert "line 8: search.training.learning_rat: is not a setting that can be tried; did you mean training" in message
    assert "line 9: search.training.epochs = -4: should be greater than 0" in message
    assert "line 12: sizes.full.training.batch_size" in faults_of(FILE.replace("batch_size: 64", "batch_size: many"))


def test_a_fault_of_the_model_and_one_of_the_rows_are_told_together(folder: Path, tmp_path: Path) -> None:
    file, results = folder / "animals.yaml", ("--results", tmp_path / "results")
    both = run(file, "--set", "start.weights_of=nobody", "--set", "corpus.label=animl", *results)
    assert both.exit_code == 2
    assert "start.weights_of:" in both.output
    assert "called nobody of size laptop. Run it first" in both.output
    assert "did you mean corpus.label: animal?" in both.output
    one_class = tmp_path / "one.csv"
    rows = (folder / "sightings.csv").read_text().splitlines()
    one_class.write_text("\n".join(row for row in rows if "dog" not in row))
    lonely = tmp_path / "lonely.csv"
    lonely.write_text("\n".join([*rows, "a fish sees,fish"]))
    decoder = exported(tmp_path / "decoder", "decoder")
    for override, words in (
        (f"corpus.path={one_class}", "one class only, 'cat'"),
        (f"corpus.path={lonely}", "corpus.least_rows: 2"),
        ("corpus.text=txt", "did you mean corpus.text: text?"),
        ("corpus.max_tokens=1000", "corpus.max_tokens: 1000: is out of range; give 3 to 32"),
        (f"start.weights_of={tmp_path}", "holds no model"),
        (f"start.weights_of={decoder}", "corpus.label needs an encoder"),
    ):
        refused = run(file, "--set", override, *results)
        assert refused.exit_code == 2, (override, refused.output)
        assert words in refused.output
        assert refused.output.count("\n") == 1, refused.output
    assert list((tmp_path / "results").glob("*/start")) == []


def test_options_beside_a_file_and_files_of_another_kind_are_refused(folder: Path) -> None:
    beside = run(folder / "animals.yaml", "rows.csv", "--classify", "animal", "--epochs", 3)
    assert beside.exit_code == 2
    assert "rows.csv, --classify, --epochs: " in beside.output
    assert "--set training.epochs=4" in beside.output
    sweep_file = run(ROOT / "sweeps/configs/quickstart.yaml")
    assert "does not belong in a fine-tuning file; run this file with pretune sweep" in sweep_file.output
    as_a_sweep = CliRunner().invoke(app, ["plan", str(folder / "animals.yaml")])
    assert as_a_sweep.exit_code == 2
    assert (
        "line 3: objective: does not belong in a sweep file; run this file with pretune finetune" in as_a_sweep.output
    )
    without_rows = run(folder / "encoder" / "best")
    assert "pretune finetune MODEL ROWS.csv --classify COLUMN" in without_rows.output
