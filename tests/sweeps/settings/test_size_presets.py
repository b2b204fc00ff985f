"""Sizes of a sweep file: one file for a laptop and for a cluster."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.size_presets import with_size
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

FILE = """\
name: sized
corpus: {builtin: python-docs, holdout: 5%}
model: {family: encoder, layers: 2, width: 64, heads: 2, sequence_length: 32}
objective: {masked_lm: {masking_rate: 0.15}}
search:
  training.learning_rate: {log_uniform: [1e-3, 1e-2]}
  training.batch_size: {choice: [16, 32]}
budget: {trials: 4, tokens_per_trial: 30k}
sizes:
  full:
    model: {layers: 6, width: 384}
    search: {training.batch_size: {int_uniform: [256, 512]}}
    budget: {tokens_per_trial: 100M}
"""


def resolve(text: str, *overrides: str) -> SweepConfig:
    return resolve_sweep(read_yaml(text), overrides, source="sized.yaml")


def faults_of(text: str, *overrides: str) -> str:
    with pytest.raises(SettingsFileError) as caught:
        resolve(text, *overrides)
    return str(caught.value)


def test_the_file_as_it_stands_is_the_laptops() -> None:
    sweep = resolve(FILE)
    assert (sweep.size, sweep.model.layers, sweep.budget.tokens_per_trial) == ("laptop", 2, 30_000)


def test_a_size_replaces_what_it_names_and_leaves_the_rest() -> None:
    sweep = resolve(FILE, "size=full")
    assert (sweep.size, sweep.model.layers, sweep.model.width, sweep.model.heads) == ("full", 6, 384, 2)
    assert (sweep.budget.trials, sweep.budget.tokens_per_trial) == (4, 100_000_000)
    # Another kind of range, not two at once.
    assert sweep.search["training.batch_size"].int_uniform == (256, 512)
    assert sweep.search["training.learning_rate"].log_uniform == (1e-3, 1e-2)


def test_what_the_command_line_sets_goes_before_the_size() -> None:
    assert resolve(FILE, "model.layers=3", "size=full").model.layers == 3


def test_the_resolved_file_of_a_size_means_the_same() -> None:
    sweep = resolve(FILE, "size=full")
    assert resolve(dump_sweep(sweep)) == sweep
    assert "size: full" in dump_sweep(sweep)


def test_a_size_that_the_file_has_not_is_a_fault_with_the_nearest() -> None:
    assert "--set size=ful: is not a size of this file; did you mean full?" in faults_of(FILE, "size=ful")
    assert "line 14: size: is not a size of this file; choose one of: laptop, full" in faults_of(FILE + "size: 7B\n")
    without_sizes = FILE[: FILE.index("sizes:")]
    assert "--set size=full: is not a size of this file; choose one of: laptop" in faults_of(without_sizes, "size=full")


def test_a_fault_in_a_size_that_is_not_asked_for_is_told_with_its_line() -> None:
    message = faults_of(FILE.replace("layers: 6", "layrs: 6").replace("100M", "100Q"))
    assert "has 2 faults" in message
    assert "line 11: sizes.full.model.layrs: is not a setting; did you mean layers?" in message
    assert "line 13: sizes.full.budget.tokens_per_trial = '100Q': not a quantity" in message


def test_a_fault_in_the_size_asked_for_stands_on_the_line_of_the_size() -> None:
    assert "line 11: model.layers = 'six'" in faults_of(FILE.replace("layers: 6", "layers: six"), "size=full")


def test_sizes_that_are_no_sections_are_a_fault_and_not_a_crash() -> None:
    assert "sizes: is not a mapping of size names to settings" in faults_of(
        FILE[: FILE.index("sizes:")] + "sizes: [full]\n"
    )


plain_values = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(max_size=2), plain_values, max_size=4)


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) and value else {(*path, key): value}
    return found


@given(mappings, mappings)
def test_every_value_of_a_size_is_in_the_result_and_nothing_is_invented(
    values: dict[str, Any], differences: dict[str, Any]
) -> None:
    before = repr(values)
    merged, theirs, ours = leaves(with_size(values, differences)), leaves(differences), leaves(values)
    # An empty section differs in nothing.
    assert all(merged[path] == value for path, value in theirs.items() if value != {})
    assert all(value in (theirs.get(path), ours.get(path)) for path, value in merged.items())
    assert repr(values) == before, "the file's own values were changed"
