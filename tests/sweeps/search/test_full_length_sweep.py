"""A sweep whose winner is named at the full length from short probes, from the file to the report."""

import json
from pathlib import Path

import pytest

from command import run
from finished_results import summary_of, sweep_folder
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import ChosenBy, TrialStore

pytestmark = pytest.mark.ray

FILE = """\
name: probes
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 16}
objective: {masked_lm: {}}
search:
  training.learning_rate: {log_uniform: [1e-3, 3e-2]}
  training.batch_size: {choice: [2, 4, 8]}
early_stopping: {method: full-length}
repeats: {trials: 0}
budget: {trials: 10, tokens_per_trial: 80k}
"""


def test_short_probes_name_settings_that_are_trained_in_full_and_the_report_shows_how_they_move(tmp_path: Path) -> None:
    file, results = tmp_path / "probes.yaml", tmp_path / "results"
    file.write_text(FILE)
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    folder = sweep_folder(results, "probes")
    records = TrialStore(folder / "trials").load_all()
    probes = [one for one in records if one.chosen_by is ChosenBy.PROBE and one.outcome is not Outcome.COMPLETED]
    in_full = [one for one in records if one.outcome is Outcome.COMPLETED]
    assert 1 <= len(in_full) <= 2
    assert len(probes) >= 3
    assert all(one.outcome is Outcome.STOPPED and "are predicted to come to" in one.reason for one in probes)
    # A branch that is longer than its share, because it takes whole steps, may exceed the tokens by a step each.
    steps = sum(16 * one.settings["training.batch_size"] * (2 * len(one.rung_losses)) for one in probes)
    assert sum(one.tokens_spent for one in probes) <= 0.1 * 10 * 80_000 + steps
    assert {len(one.rung_losses) for one in probes} > {1}, "no probe came to a second length"
    best = summary_of(results, "probes")["best"]["trial"]
    assert best in {one.name for one in in_full}
    assert (folder / "best" / "model.safetensors").exists()
    record = (folder / "EXPERIMENT.md").read_text(encoding="utf-8")
    assert "grows as tokens to the power" in record
    assert "| trial | settings | predicted (95 %) | measured | interval |" in record
    _, planned = run("plan", file, "--no-measure", "--results", results, "--json")
    assert sum(one.tokens_spent for one in records) <= json.loads(planned.splitlines()[-1])["max_tokens"] + steps
