"""Choices between models and optimizers, swept: the shipped sweep of feed-forwards, and AdamW against Muon."""

import csv
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from command import ROOT, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = (
    "corpus={builtin: python-docs, holdout: 2%}",
    "tokenizer.vocabulary=1000",
    "model={family: decoder, layers: 2, width: 32, heads: 2, kv_heads: 1, sequence_length: 32}",
    "model.memory.entries=1024",
    "budget.tokens_per_trial=20k",
)
KINDS = ("swiglu", "moe", "memory", "none")


def test_feed_forwards_at_equal_parameters_and_at_equal_operations_in_one_sweep(tmp_path: Path) -> None:
    overrides = [part for one in SMALL for part in ("--set", one)]
    code, output = run("sweep", ROOT / "sweeps/configs/minimind.yaml", "--results", tmp_path, *overrides)
    assert code == 0, output
    (folder,) = (path.parent for path in tmp_path.glob("minimind-*/summary.json"))
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    asked = {(row["model.feed_forward"], row["model.equal_in"]) for row in rows}
    assert asked == {(kind, measure) for kind in KINDS for measure in ("parameters", "flops")}
    for row in rows:
        for column in ("parameters", "training_flops", "tokens_per_s", "holdout_loss_nats_per_token"):
            assert float(row[column]) > 0, (row["trial"], column)
    words = (folder / "EXPERIMENT.md").read_text(encoding="utf-8")
    for measure in ("parameters", "flops"):
        (line,) = (line for line in words.splitlines() if f"Equal in {measure}:" in line)
        assert all(kind in line for kind in KINDS)
    assert all(f"| {column} " in words for column in ("parameters", "Mflop a token", "tokens/s", "holdout loss"))


OPTIMIZERS = """\
name: optimizers
corpus: {builtin: python-docs, holdout: 2%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: decoder, layers: 1, width: 32, heads: 2, sequence_length: 32, parametrization: mup, mup_base_width: 16}
objective: {causal_lm: {}}
training: {batch_size: 16, learning_rate: 4e-3, warmup_tokens: 1k, weight_decay_timescale: 2}
search: {training.optimizer: {choice: [adamw, muon]}}
searcher: {method: grid}
early_stopping: {method: none}
repeats: {trials: 0}
budget: {tokens_per_trial: 20k}
"""


def test_a_sweep_over_optimizers_trains_both_and_trains_the_winner_longer(tmp_path: Path) -> None:
    file = tmp_path / "optimizers.yaml"
    file.write_text(OPTIMIZERS)
    code, output = run("sweep", file, "--results", tmp_path)
    assert code == 0, output
    (folder,) = (path.parent for path in tmp_path.glob("optimizers-*/summary.json"))
    rows = {row["training.optimizer"]: row for row in csv.DictReader((folder / "trials.csv").open())}
    assert set(rows) == {"adamw", "muon"}
    assert {row["outcome"] for row in rows.values()} == {"COMPLETED"}
    losses = {name: float(row["holdout_loss_nats_per_token"]) for name, row in rows.items()}
    assert losses["adamw"] != losses["muon"]
    assert max(losses.values()) < 6.75, "a model that knows no more than the vocabulary has 6.9"
    winner = json.loads((folder / "summary.json").read_text())["best"]["training.optimizer"]
    assert winner == min(losses, key=lambda name: losses[name])

    code, output = run("train", file, "--from", "best", "--tokens", "3x", "--results", tmp_path)
    assert code == 0, output
    assert "weight decay keeps its time scale, 2 of the training" in " ".join(output.split())
    (state,) = tmp_path.glob("optimizers-train-*/trials/*/step-*/optimizer.safetensors")
    with safe_open(state, framework="pt") as tensors:
        has_momentum = any(name.startswith("momentum_buffer/") for name in tensors.keys())  # noqa: SIM118
    assert has_momentum == (winner == "muon")
