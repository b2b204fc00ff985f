"""Sweeps as Python gives them: equal to those of files, with search spaces of other tools."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray import tune

from data_pipeline.schema.user_errors import InputFault
from sweep_examples import TINY
from sweeps.python.foreign_spaces import in_our_terms
from sweeps.python.given_sweep import given_sweep
from sweeps.search_space.distribution import Distribution
from sweeps.settings.sweep_file import load_sweep_file

RATE, BATCH = "training.learning_rate", "training.batch_size"


def _values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(TINY)
    return values


def test_a_file_its_dictionary_and_its_configuration_are_one_sweep(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    of_file = given_sweep(file)
    assert of_file == load_sweep_file(file) == given_sweep(str(file))
    assert given_sweep(_values()) == of_file
    assert given_sweep(of_file) == of_file


def test_overrides_are_those_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    wanted = load_sweep_file(file, ["budget.trials=2", "training.precision=fp32", f"search.{BATCH}.choice=[8, 64]"])
    as_mapping = {"budget.trials": np.int64(2), "training.precision": "fp32", f"search.{BATCH}": {"choice": (8, 64)}}
    assert given_sweep(file, overrides=as_mapping) == wanted
    assert given_sweep(_values(), search={BATCH: Distribution(choice=(8, 64))}, overrides=["budget.trials=2"]) == (
        given_sweep(_values(), overrides={"budget.trials": 2, f"search.{BATCH}": {"choice": [8, 64]}})
    )


def test_plain_numbers_of_other_libraries_are_numbers() -> None:
    values = _values()
    values["budget"] = {"trials": np.int32(6), "tokens_per_trial": np.float64(30_000)}
    values["corpus"] = {"path": Path("corpus.txt")}
    sweep = given_sweep(values)
    assert sweep.budget.trials == 6
    assert sweep.corpus.path is not None


def test_all_faults_of_a_dictionary_are_told_at_once() -> None:
    values = _values()
    values["model"]["width"] = 33
    with pytest.raises(InputFault) as caught:
        given_sweep(values, search={"training.batchsize": tune.choice([1, 2])}, overrides={"budget.trials": 0})
    text = str(caught.value)
    assert "the configuration has" in text
    for words in ("batchsize", "budget.trials"):
        assert words in text


BOUNDS = st.tuples(st.integers(1, 50), st.integers(2, 60)).map(lambda one: (one[0], one[0] + one[1]))


@given(BOUNDS)
def test_ranges_of_tune_have_the_ends_that_tune_draws(bounds: tuple[int, int]) -> None:
    low, high = bounds
    # Tune's whole numbers end below their upper end, and its quantized ones at it.
    assert in_our_terms(RATE, tune.uniform(low, high)) == {"uniform": [low, high]}
    assert in_our_terms(RATE, tune.loguniform(low, high)) == {"log_uniform": [low, high]}
    assert in_our_terms(BATCH, tune.randint(low, high + 1)) == {"int_uniform": [low, high]}
    assert in_our_terms(BATCH, tune.lograndint(low, high + 1)) == {"log_int_uniform": [low, high]}
    assert in_our_terms(BATCH, tune.qrandint(low, high, 1)) == {"int_uniform": [low, high]}
    drawn = {int(tune.randint(low, low + 2).sample()) for _ in range(20)}
    assert drawn <= {low, low + 1}


@given(BOUNDS)
def test_ranges_of_optuna_have_the_ends_that_optuna_draws(bounds: tuple[int, int]) -> None:
    low, high = bounds
    assert in_our_terms(RATE, FloatDistribution(low, high)) == {"uniform": [low, high]}
    assert in_our_terms(RATE, FloatDistribution(low, high, log=True)) == {"log_uniform": [low, high]}
    assert in_our_terms(BATCH, IntDistribution(low, high)) == {"int_uniform": [low, high]}
    assert in_our_terms(BATCH, IntDistribution(low, high, log=True)) == {"log_int_uniform": [low, high]}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {study.ask({BATCH: IntDistribution(low, low + 1)}).params[BATCH] for _ in range(10)}
    assert drawn <= {low, low + 1}


def test_steps_become_lists() -> None:
    assert in_our_terms(RATE, tune.quniform(0.1, 0.5, 0.1)) == {"choice": [0.1, 0.2, 0.3, 0.4, 0.5]}
    assert in_our_terms(BATCH, tune.qrandint(8, 32, 8)) == {"choice": [8, 16, 24, 32]}
    assert in_our_terms(BATCH, IntDistribution(8, 32, step=8)) == {"choice": [8, 16, 24, 32]}
    assert in_our_terms(RATE, FloatDistribution(0.0, 1.0, step=0.25)) == {"choice": [0.0, 0.25, 0.5, 0.75, 1.0]}


def test_lists_of_all_tools_are_lists() -> None:
    for given_list in (tune.choice([8, 16]), tune.grid_search([8, 16]), CategoricalDistribution((8, 16))):
        assert in_our_terms(BATCH, given_list) == {"choice": [8, 16]}


@pytest.mark.parametrize(
    ("given_space", "words"),
    [
        (tune.sample_from(lambda: 1), "tune.sample_from"),
        (tune.randn(0, 1), "Normal"),
        (tune.qloguniform(1e-4, 1e-1, 1e-4), "logarithmic"),
        (tune.quniform(0, 1, 1e-4), "10,001 steps"),
        (FloatDistribution(0, 1, step=1e-4), "10,001 steps"),
    ],
)
def test_a_distribution_without_an_equal_is_refused_by_name(given_space: Any, words: str) -> None:
    with pytest.raises(InputFault, match=words) as caught:
        given_sweep(_values(), search={RATE: given_space})
    assert f"search.{RATE}" in str(caught.value)


def test_a_grid_search_tries_all_values_and_refuses_a_range_beside_it() -> None:
    values = _values()
    values["search"] = {}
    grid = given_sweep(values, search={BATCH: tune.grid_search([8, 16]), "model.heads": tune.choice([1, 2])})
    assert grid.searcher.method == "grid"
    assert grid.num_trials == 4
    with pytest.raises(InputFault, match=r"tune\.grid_search tries all values"):
        given_sweep(values, search={BATCH: tune.grid_search([8, 16]), RATE: tune.loguniform(1e-4, 1e-2)})


def test_conditions_and_constraints_are_given_as_in_a_file() -> None:
    sweep = given_sweep(
        _values(),
        search={
            "model.feed_forward": tune.choice(["gelu", "moe"]),
            "model.mixture.experts": {"choice": [2, 4], "when": {"model.feed_forward": "moe"}},
            "constraint": "batch_size * learning_rate < 0.5",
        },
    )
    assert sweep.constraint == ("batch_size * learning_rate < 0.5",)
    assert sweep.search["model.mixture.experts"].when == {"model.feed_forward": ("moe",)}


@given(st.dictionaries(st.sampled_from([RATE, "training.weight_decay"]), st.floats(1e-6, 0.4), min_size=1))
def test_no_digit_of_an_override_is_lost(overrides: dict[str, float]) -> None:
    values = _values()
    values["search"] = {}
    sweep = given_sweep(values, overrides=overrides)
    for path, value in overrides.items():
        found = sweep.value_at(path)
        assert math.isclose(found, json.loads(json.dumps(value)), rel_tol=0)
