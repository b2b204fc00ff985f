"""System A from end to end: the encoder that classifies traffic best, chosen by a sweep and found in every file."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_packets import write_packets
from mlflow.tracking import MlflowClient

from command import run
from finished_results import child_runs, sweep_folder
from sweeps.tracking.mlflow_store import EXPERIMENT

pytestmark = pytest.mark.ray

SWEEP = """\
name: packets
corpus: {{path: {folder}/packets.csv, text: text, holdout: 10%}}
tokenizer: {{kind: words, vocabulary: 1000, min_frequency: 1}}
model: {{family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}}
objective: masked_lm
training: {{precision: fp32, batch_size: 16, micro_batch_size: 16}}
search: {{training.learning_rate: {{choice: [1.0e-5, 3.0e-3]}}}}
searcher: {{method: grid}}
evaluation:
  points: 2
  tasks: [{{name: protocol, path: {folder}/labelled.csv, text: text, label: protocol}}]
metric: {{name: task/protocol/accuracy, mode: {mode}}}
budget: {{trials: 2, tokens_per_trial: 20k}}
resources: {{concurrent_trials: 1}}
"""


@dataclass(frozen=True)
class Swept:
    """A finished sweep, with all that its user gave and saw."""

    file: Path
    results: Path
    folder: Path
    output: str


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep that asks for the lowest accuracy: no loss would choose that, so nothing but the metric has chosen."""
    folder = tmp_path_factory.mktemp("packets")
    write_packets(folder / "packets.csv", 600)
    write_packets(folder / "labelled.csv", 360, seed=1, words_of_payload=3)
    file, results = folder / "packets.yaml", folder / "results"
    file.write_text(SWEEP.format(folder=folder, mode="min"))
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    return Swept(file, results, sweep_folder(results, "packets"), output)


def test_a_sweep_ranks_its_encoders_by_the_task_in_every_file(swept: Swept) -> None:
    rows = trials_of(swept.folder)
    accuracies = [float(row["task_protocol_accuracy"]) for row in rows]
    assert [row["outcome"] for row in rows] == ["COMPLETED"] * 2
    assert 0.5 < accuracies[0] < accuracies[1] < 1, "chance is a third"
    assert all(row["task_protocol_macro_f1"] for row in rows)
    summary = json.loads((swept.folder / "summary.json").read_text())
    best = summary["best"]
    assert (best["trial"], best["task_protocol_accuracy"]) == (rows[0]["trial"], accuracies[0])
    assert (summary["winner"]["metric"], summary["winner"]["trial"]) == ("task/protocol/accuracy", best["trial"])
    assert "task     protocol: " in swept.output
    assert f"best     {best['trial']}, task/protocol/accuracy {accuracies[0]:.4f}, holdout loss" in swept.output
    for name in ("EXPERIMENT.md", "report.html"):
        assert "too few of the 2 completed trials differ for a rank correlation" in (swept.folder / name).read_text()
    children = child_runs(swept.results, "packets")
    assert {child.data.metrics["task/protocol/accuracy"] for child in children} == {*accuracies}
    parent = parent_of(swept.results)
    assert parent.data.tags["pretune.best_trial"] == best["trial"]
    assert parent.data.metrics["task/protocol/accuracy"] == accuracies[0]


def test_rows_that_no_probe_can_use_end_the_command_before_anything_is_trained(swept: Swept, tmp_path: Path) -> None:
    (tmp_path / "labelled.csv").write_text("text,protocol\n4500 0001,DNS\n")
    tasks = f"[{{name: protocol, path: {tmp_path}/labelled.csv, text: text, label: protocol}}]"
    code, refused = run("sweep", swept.file, "--results", tmp_path, "--set", f"evaluation.tasks={tasks}")
    assert code == 2
    assert "task protocol: " in refused
    assert not [*tmp_path.glob("packets-*")]


@pytest.mark.slow
def test_the_other_direction_takes_over_the_trial_that_cannot_win_and_names_the_other_one(swept: Swept) -> None:
    before = trials_of(swept.folder)
    swept.file.write_text(swept.file.read_text().replace("mode: min", "mode: max"))
    code, output = run("sweep", swept.file, "--results", swept.results)
    assert code == 0, output
    (other,) = (one for one in swept.results.glob("packets-*") if one != swept.folder)
    now = trials_of(other)
    # The winner of now had lost: its weights are gone, so it is trained again, to the same figure.
    assert [bool(row["taken_over_from"]) for row in now] == [False, True]
    for name in ("training.learning_rate", "task_protocol_accuracy", "holdout_loss_nats_per_token"):
        assert [row[name] for row in now] == [row[name] for row in before[::-1]]


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def parent_of(results: Path) -> Any:
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'packets'")
    return parent
