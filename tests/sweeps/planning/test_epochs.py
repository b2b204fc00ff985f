"""Budgets in epochs: exactly the tokens of so many passes over the training rows."""

from pathlib import Path

import pytest

from conversing import prepared_conversations
from data_pipeline.schema.user_errors import InputFault
from sweep_examples import tiny_sweep
from sweeps.planning.epochs import with_expected_tokens, with_tokens_of_epochs
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml


def in_epochs(epochs: float, *overrides: str) -> SweepConfig:
    return tiny_sweep(f"budget={{trials: 6, epochs_per_trial: {epochs}}}", *overrides)


def test_a_trial_gets_the_tokens_of_its_epochs_once_the_rows_are_counted(tmp_path: Path) -> None:
    data = prepared_conversations(tmp_path, [[("user", f"{n}"), ("assistant", f"{n}")] for n in range(20)])
    sweep = with_tokens_of_epochs(in_epochs(2.5), data)
    assert sweep.budget.tokens_per_trial == round(2.5 * data.train.num_tokens)
    assert resolve_sweep(read_yaml(dump_sweep(sweep)), source="again") == sweep
    assert with_tokens_of_epochs(sweep, data) == sweep
    limited = in_epochs(2.5, f"budget.tokens={data.train.num_tokens}")
    with pytest.raises(InputFault, match=r"no trial fits; raise it, or lower budget\.epochs_per_trial"):
        with_tokens_of_epochs(limited, data)


def test_a_plan_expects_about_as_many_tokens_for_each_epoch() -> None:
    one, three = (with_expected_tokens(in_epochs(epochs)).budget.tokens_per_trial for epochs in (1, 3))
    assert three == pytest.approx(3 * one, abs=2)
    # The built-in corpus has 0.6 M tokens with 4,096 entries, and more with the thousand of this file.
    assert 400_000 < one < 1_200_000


def test_epochs_and_tokens_together_are_a_fault() -> None:
    with pytest.raises(SettingsFileError, match="give tokens_per_trial or epochs_per_trial, not both"):
        tiny_sweep("budget.epochs_per_trial=2")
