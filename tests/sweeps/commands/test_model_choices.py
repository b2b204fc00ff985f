"""System B's question in small: the shipped sweep of feed-forwards runs, and its report answers."""

import csv
from pathlib import Path

import pytest

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
