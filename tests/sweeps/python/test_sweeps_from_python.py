"""Sweeps that a script or a notebook runs."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pytest
import ray
import yaml
from nbclient import NotebookClient
from ray import tune

import pretune
from command import ROOT, run
from patience import COMMAND_HANGS_AFTER_S
from sweep_examples import TINY

pytestmark = pytest.mark.ray

FORM, EXPERTS = "model.feed_forward", "model.mixture.experts"
SMALL = {"budget.trials": 3, "budget.tokens_per_trial": 4000, "repeats.trials": 0, "resources.concurrent_trials": 1}


@pytest.fixture(scope="module")
def rays_of_the_user() -> Any:
    ray.init("local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


def test_a_sweep_joins_the_ray_of_the_user_leaves_it_running_and_is_that_of_the_file(
    rays_of_the_user: None, tmp_path: Path
) -> None:
    values = yaml.safe_load(TINY)
    values["search"] = {
        "training.learning_rate": tune.loguniform(1e-3, 1e-2),
        FORM: tune.choice(["gelu", "moe"]),
        EXPERTS: {"choice": [2, 3], "when": {FORM: "moe"}},
        "constraint": "learning_rate < 8e-3",
    }
    results = tmp_path / "results"
    done = pretune.sweep(values, overrides=SMALL, results=results)
    assert ray.is_initialized()
    assert done.status == "finished"
    trials = done.trials
    assert len(trials) == 3
    assert (trials["training.learning_rate"] < 8e-3).all()
    assert (trials.loc[trials[FORM] == "gelu", EXPERTS] == 4).all()  # The value of the file, which has no effect.
    assert trials.loc[trials[FORM] == "moe", EXPERTS].isin([2, 3]).all()

    # The same sweep as a file, by the command: nothing is left to train.
    file = tmp_path / "tiny.yaml"
    values["search"] |= {"training.learning_rate": {"log_uniform": [1e-3, 1e-2]}, FORM: {"choice": ["gelu", "moe"]}}
    file.write_text(yaml.safe_dump(values))
    overrides = [text for path, value in SMALL.items() for text in ("--set", f"{path}={value}")]
    code, printed = run("sweep", file, *overrides, "--results", results)
    assert code == 0, printed
    assert "the sweep was already finished" in printed
    assert done.folder.name in printed
    client = mlflow.MlflowClient(f"sqlite:///{results}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert len([one for one in runs if "mlflow.parentRunId" not in one.data.tags]) == 1

    # And again from Python: the same folder, at once.
    again = pretune.sweep(values, overrides=SMALL, results=results)
    assert again.folder == done.folder
    pretune_best = done.best
    assert pretune_best is not None
    longer = pretune.train(done, tokens="2x", keep_settings=True)
    assert longer.best is not None
    assert longer.config.budget.tokens_per_trial == 8000
    assert ray.is_initialized()


@pytest.mark.slow
def test_the_shipped_notebook_runs_from_top_to_end(tmp_path: Path) -> None:
    folder = ROOT / "sweeps/configs"
    notebook = nbformat.read(folder / "quickstart.ipynb", as_version=4)
    config = json.dumps(str(folder / "quickstart.yaml"))
    small = json.dumps(SMALL | {"early_stopping.method": "none", "start_with": [], "model.width": 32})
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'config = "quickstart.yaml"' in first.source
    assert "overrides = {}" in first.source
    first.source = first.source.replace('"quickstart.yaml"', config).replace("overrides = {}", f"overrides = {small}")
    NotebookClient(notebook, timeout=COMMAND_HANGS_AFTER_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type in ("display_data", "execute_result")
    ]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    # A trial that runs out of memory uses none of its tokens.
    assert any(re.search(r"\d+% of at most [\d,]+ tokens", page) for page in pages), "no live table"
    assert not any("\x1b" in page for page in pages), "colours of a terminal"
    assert any("<iframe sandbox" in page for page in pages), "no report"
    assert any("torch.Size([1, " in data.get("text/plain", "") for data in shown)
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
