import itertools
from typing import Any

import pytest

from sweep_examples import tiny_sweep
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig

SPACE = ("search.model.width={choice: [30, 32, 48]}", "search.model.heads={choice: [2, 3, 5]}")


def valid_shapes(widths: list[int], heads: list[int]) -> int:
    return sum(width % count == 0 for width, count in itertools.product(widths, heads))


def words_of(sweep: SweepConfig) -> str:
    return "\n".join(line for one in sweep.partly_invalid() for line in one.in_words())


def test_invalid_combinations_are_counted_exactly_and_listed_with_their_rule() -> None:
    words = words_of(tiny_sweep(*SPACE))
    left = valid_shapes([30, 32, 48], [2, 3, 5])
    assert words.startswith(f"{left} of 9 combinations of model.width, model.heads are valid; the others are never")
    assert "  width 32, heads 3: width=32 is not a multiple of heads=3; try width=33" in words
    assert words.count("try width=") == 9 - left


def test_a_range_of_whole_numbers_is_counted_exactly() -> None:
    sweep = tiny_sweep("search.model.width={int_uniform: [30, 48]}", "search.model.heads={int_uniform: [2, 5]}")
    (found,) = sweep.partly_invalid()
    assert (found.num_valid, found.num_judged) == (valid_shapes([*range(30, 49)], [2, 3, 4, 5]), 19 * 4)
    assert words_of(sweep).endswith(f"and {len(found.faults) - 10} more")


def test_a_grid_is_judged_at_its_own_points() -> None:
    space = ("search.model.width={int_uniform: [30, 48]}", "search.model.heads={int_uniform: [2, 5]}")
    (found,) = tiny_sweep(*space, "searcher={method: grid, grid_points: 2}").partly_invalid()
    assert (found.num_valid, found.num_judged) == (valid_shapes([30, 48], [2, 5]), 4)


def test_a_range_of_fractions_is_judged_by_a_sample_that_is_always_the_same_and_says_so() -> None:
    space = ("search.training.warmup={uniform: [0.0, 1.0]}", "search.training.cooldown={uniform: [0.0, 0.6]}")
    (found,), (again,) = tiny_sweep(*space).partly_invalid(), tiny_sweep(*space).partly_invalid()
    assert found == again
    assert "drawn as a sample" in str(found)
    assert all(one["training.warmup"] + one["training.cooldown"] > 1 for one, _ in found.faults)


def test_a_space_of_valid_combinations_is_not_mentioned() -> None:
    assert words_of(tiny_sweep()) == ""


@pytest.mark.parametrize("method", ["tpe", "grid"])
def test_a_space_without_a_valid_combination_is_refused_with_its_line_and_an_example(method: str) -> None:
    space = ("search.model.width={choice: [31, 33]}", "search.model.heads={choice: [2, 4]}")
    with pytest.raises(SettingsFileError) as raised:
        tiny_sweep(*space, f"searcher.method={method}")
    words = str(raised.value)
    assert "line 6: search.model.width: 0 of 4 combinations of model.width, model.heads are valid" in words
    assert "width=31 is not a multiple of heads=2; try width=32" in words


@pytest.mark.parametrize("listed", [{"model.width": 32, "model.heads": 3}, {"model.width": 31}])
def test_an_invalid_combination_of_start_with_is_refused(listed: dict[str, Any]) -> None:
    with pytest.raises(SettingsFileError, match=r"start_with\.0: .*is not a multiple of heads="):
        tiny_sweep(*SPACE, f"start_with=[{listed}]")


def test_optimizers_and_settings_in_units_of_their_own_can_be_swept() -> None:
    search = {
        "training.optimizer": {"choice": ["adamw", "muon"]},
        "training.muon.momentum": {"uniform": [0.9, 0.99]},
        "training.weight_decay_timescale": {"log_uniform": [0.05, 2]},
        "training.warmup_tokens": {"choice": ["1k", "2k"]},
        "training.beta2_half_life_tokens": {"log_int_uniform": [10_000, 100_000]},
        "model.parametrization": {"choice": ["standard", "mup"]},
    }
    sweep = SweepConfig.model_validate(tiny_sweep().model_dump(mode="json", exclude_none=True) | {"search": search})
    assert list(sweep.partly_invalid()) == []
    chosen = {"training.optimizer": "muon", "training.weight_decay_timescale": 0.3, "training.warmup_tokens": 2000}
    training = sweep.run_config(chosen).training
    assert (training.optimizer, training.weight_decay_timescale, training.warmup_tokens) == ("muon", 0.3, 2000)


def test_adapters_are_never_launched_with_muon() -> None:
    search = {"search": {"training.optimizer": {"choice": ["adamw", "muon"]}}}
    sweep = tiny_sweep("training.lora={}", "start.weights_of=another").model_dump(mode="json", exclude_none=True)
    words = words_of(SweepConfig.model_validate(sweep | search))
    assert words.startswith("1 of 2 combinations of training.optimizer are valid")
    assert "optimizer muon: training.optimizer=muon changes whole matrices" in words


def test_a_swept_setting_beside_the_same_in_another_unit_is_refused_with_the_rule() -> None:
    with pytest.raises(SettingsFileError, match=r"warmup=0.1 and warmup_tokens=\d+ each set the warm-up; keep one"):
        tiny_sweep("training.warmup=10%", "search.training.warmup_tokens={choice: [1k, 2k]}")


def test_a_warm_up_longer_than_a_trial_leaves_is_refused_before_any_training() -> None:
    with pytest.raises(SettingsFileError, match=r"comes to 90% of the 30,000 tokens of a trial, and with"):
        tiny_sweep("training.warmup_tokens=27k")


def test_a_growing_batch_is_refused_with_probes_of_shorter_lengths_and_with_stages() -> None:
    growing = "training.batch_schedule={double_at: [30%, 60%]}"
    with pytest.raises(SettingsFileError, match=r"early_stopping.method=trunk-and-branch ends trainings at shorter"):
        tiny_sweep(growing)
    sweep = tiny_sweep(growing, "early_stopping.method=asha")
    assert sweep.run_config().training.largest_batch_size == 4 * sweep.training.batch_size
    with pytest.raises(SettingsFileError, match=r"double_at: cannot be swept; a distribution holds single"):
        tiny_sweep("search.training.batch_schedule.double_at={choice: [0.1, 0.2]}")
