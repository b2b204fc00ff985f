"""A slow machine gives trials fewer tokens, once measured and the same ever after."""

import os
from pathlib import Path

import pytest

from data_pipeline.schema.user_errors import InputFault
from sweep_examples import tiny_sweep
from sweeps.planning import shortened_budget as room
from sweeps.planning.shortened_budget import with_shortened_trials
from sweeps.settings.sweep_config import SweepConfig

ASKED = 100_000
CORES = os.cpu_count() or 1


def shortened(shorten_to: str, results: Path, *, measured: bool = True) -> tuple[SweepConfig, str]:
    overrides = (f"budget.tokens_per_trial={ASKED}", f"budget.shorten_to={shorten_to}", "budget.trials=4")
    cluster = {"num_cpus": CORES, "num_gpus": 0}
    return with_shortened_trials(
        tiny_sweep(*overrides),
        cluster=(lambda: cluster) if measured else None,
        vocabulary_size=300,
        results_folder=results,
    )


def test_a_machine_that_is_fast_enough_trains_what_the_file_says(tmp_path: Path) -> None:
    sweep, words = shortened("10d", tmp_path)
    assert sweep.budget.tokens_per_trial == ASKED
    assert sweep.budget.shorten_to is None, "the resolved file is the sweep itself, on any machine"
    assert "as in the file" in words


def test_a_slow_machine_lowers_the_tokens_in_proportion_to_its_rate_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_tokens_per_s", lambda *_, **__: 1_000.0)
    fast, _ = shortened("120s", tmp_path)
    slow, words = shortened("60s", tmp_path)
    assert 10_000 < slow.budget.tokens_per_trial < fast.budget.tokens_per_trial < ASKED
    # Two digits of each are kept.
    assert fast.budget.tokens_per_trial / slow.budget.tokens_per_trial == pytest.approx(2, rel=0.1)
    assert f"{slow.budget.tokens_per_trial:,} tokens a trial, lowered from {ASKED:,}" in words
    assert "1,000 tokens/s" in words


def test_what_was_measured_once_decides_ever_after_so_the_same_command_is_the_same_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_tokens_per_s", lambda *_, **__: 1_000.0)
    first = shortened("60s", tmp_path)
    monkeypatch.setattr(room, "_tokens_per_s", lambda *_, **__: pytest.fail("measured twice"))
    assert shortened("60s", tmp_path) == first
    assert shortened("60s", tmp_path, measured=False) == first, "a plan shows what the sweep will do"


def test_a_plan_measures_nothing(tmp_path: Path) -> None:
    sweep, words = shortened("1s", tmp_path, measured=False)
    assert sweep.budget.tokens_per_trial == ASKED
    assert "the sweep first measures" in words
    assert not list(tmp_path.iterdir())


def test_a_machine_too_busy_to_be_measured_is_taken_to_be_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_tokens_per_s", lambda *_, **__: None)
    sweep, words = shortened("1s", tmp_path)
    assert sweep.budget.tokens_per_trial < ASKED
    assert "is too busy to be measured and is assumed to train" in words


def test_the_rate_of_this_machine_is_measured_for_real(tmp_path: Path) -> None:
    _, words = shortened("1s", tmp_path)
    assert "tokens/s" in words
    assert (tmp_path / "memory" / "trial-lengths.json").is_file()


@pytest.mark.parametrize("value", ["soon", "0s", "-1min"])
def test_a_time_that_is_none_is_refused_with_the_units(value: str) -> None:
    with pytest.raises(InputFault, match=r"shorten_to.*write a positive number with a unit of s, min, h or d"):
        tiny_sweep(f"budget.shorten_to={value}")
