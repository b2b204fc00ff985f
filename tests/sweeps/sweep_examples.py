"""Small sweeps that several tests use."""

from typing import Any

from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

TINY = """\
name: tiny
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}
objective: {masked_lm: {masking_rate: 0.15}}
search:
  training.learning_rate: {log_uniform: [1e-3, 1e-2]}
  training.batch_size: {choice: [16, 32]}
  training.micro_batch_size: {choice: [4, 8, 16]}
budget: {trials: 6, tokens_per_trial: 30k}
"""


def tiny_sweep(*overrides: str) -> SweepConfig:
    """A sweep that trains in seconds."""
    return resolve_sweep(read_yaml(TINY), overrides, source="tiny.yaml")


def record(
    number: int, outcome: Outcome | None = Outcome.COMPLETED, loss: float | None = None, **fields: Any
) -> TrialRecord:
    """A trial record as a sweep would leave it."""
    metrics = {} if loss is None else {LOSS: loss}
    settings = fields.pop("settings", {"training.learning_rate": 0.001 * number})
    return TrialRecord(number=number, outcome=outcome, metrics=metrics, settings=settings, **fields)
