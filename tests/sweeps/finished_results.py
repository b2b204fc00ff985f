"""What finished sweeps left in a results folder: summaries, runs in MLflow, a winner that transformers loads."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from mlflow.tracking import MlflowClient

from core.model_files.checkpoint import MODEL_FILE, newest_checkpoint, restore_weights
from core.models.model_factory import build_model
from data_pipeline.tokens.token_blocks import open_prepared
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.tracking.mlflow_store import EXPERIMENT


def sweep_folder(results: Path, name: str) -> Path:
    (folder,) = results.glob(f"{name}-*")
    return folder


def summary_of(results: Path, name: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((sweep_folder(results, name) / "summary.json").read_text())
    return summary


def child_runs(results: Path, name: str) -> list[Any]:
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    parents = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert len(parents) == 1
    return list(
        client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'")
    )


def check_winner(folder: Path, expected: type[Any]) -> None:
    """best/ loads with transformers as it is, and computes what the trial's own checkpoint computes."""
    summary = json.loads((folder / "summary.json").read_text())
    sweep = load_sweep_file(folder / "sweep.yaml")
    data = open_prepared(Path(summary["data"]["folder"]))
    config = sweep.run_config().model
    ours = build_model(config, data.vocabulary.size, pad_id=data.vocabulary.pad_id).eval()
    checkpoint = newest_checkpoint(folder / "trials" / summary["best"]["trial"])
    assert checkpoint is not None
    restore_weights(checkpoint / MODEL_FILE, ours)
    auto = transformers.AutoModelForCausalLM if config.is_causal else transformers.AutoModelForMaskedLM
    theirs = auto.from_pretrained(folder / "best").eval()
    assert type(theirs) is expected
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "best")
    ids = tokenizer("The list of names is sorted in place.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        # Different order of the same fp32 operations.
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
