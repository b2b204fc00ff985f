"""First points from knowledge: what they are, and that they stay inside the space."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep_examples import tiny_sweep
from sweeps.search.initial_points import informed_points
from sweeps.settings.setting_paths import half_life_tokens
from sweeps.settings.sweep_config import SweepConfig

RATE, BATCH, MASKING, BETA2 = (
    "training.learning_rate",
    "training.batch_size",
    "objective.masked_lm.masking_rate",
    "training.beta2",
)


def with_search(search: dict[str, Any], *overrides: str) -> SweepConfig:
    """The tiny sweep with this space and no other."""
    sweep = tiny_sweep("budget.trials=12", *overrides)
    return SweepConfig.model_validate(sweep.model_dump(mode="json", exclude_none=True) | {"search": search})


def test_the_learning_rate_goes_with_the_square_root_of_the_batch_size() -> None:
    sweep = with_search({RATE: {"log_uniform": [1e-4, 1e-2]}, BATCH: {"choice": [32, 128, 512]}})
    rates = {point.settings[BATCH]: point.settings[RATE] for point in informed_points(sweep)}
    assert rates == {32: pytest.approx(5e-4), 128: pytest.approx(1e-3), 512: pytest.approx(2e-3)}
    assert list(rates) == [32, 128, 512], "at equal tokens the smallest takes the most steps"


def test_beta2_keeps_its_half_life_in_tokens() -> None:
    sweep = with_search({BETA2: {"uniform": [0.9, 0.9999]}, BATCH: {"choice": [16, 64, 256]}})
    half_lives = [
        half_life_tokens(point.settings[BETA2], batch_size=point.settings[BATCH], sequence_length=32)
        for point in informed_points(sweep)
    ]
    assert half_lives == pytest.approx([half_lives[0]] * 3)
    # At the middle batch size it is the file's beta2.
    assert half_lives[0] == pytest.approx(math.log(0.5) / math.log(0.98) * 64 * 32)


def test_masking_begins_at_thirty_percent_or_as_near_as_the_space_allows() -> None:
    for space, expected in (
        ({"uniform": [0.1, 0.5]}, 0.3),
        ({"uniform": [0.1, 0.2]}, 0.2),
        ({"choice": [0.15, 0.25, 0.4]}, 0.25),
    ):
        (point,) = informed_points(with_search({MASKING: space}))
        assert point.settings[MASKING] == expected


def test_what_nothing_is_known_of_has_the_value_of_the_file_where_that_is_swept_over() -> None:
    search = {"training.weight_decay": {"uniform": [0.0, 0.5]}, "training.warmup": {"uniform": [0.1, 0.3]}}
    (point,) = informed_points(with_search(search))
    assert point.settings == {"training.weight_decay": 0.1, "training.warmup": pytest.approx(0.2)}


def test_none_turns_them_off_and_a_grid_has_none() -> None:
    assert informed_points(tiny_sweep("searcher.start=none")) == []
    assert informed_points(tiny_sweep("searcher.method=grid")) == []


@given(
    low=st.floats(1e-5, 1e-3),
    factor=st.floats(1.5, 100),
    sizes=st.lists(st.sampled_from([8, 16, 32, 64, 128, 256]), min_size=1, max_size=5, unique=True),
    kind=st.sampled_from(["uniform", "log_uniform"]),
)
def test_points_lie_inside_the_space_and_are_distinct(low: float, factor: float, sizes: list[int], kind: str) -> None:
    sweep = with_search({RATE: {kind: [low, low * factor]}, BATCH: {"choice": sizes}, MASKING: {"uniform": [0.1, 0.2]}})
    points = [point.settings for point in informed_points(sweep)]
    assert 1 <= len(points) == len({str(point) for point in points}) <= 3
    for point in points:
        assert all(space.holds(point[path]) for path, space in sweep.search.items())
        sweep.run_config(point)


def test_a_point_that_the_file_lists_already_leaves_its_place_to_the_next() -> None:
    sweep = with_search({BATCH: {"choice": [32, 128, 512]}}, "budget.trials=4")
    assert [point.settings for point in informed_points(sweep)] == [{BATCH: 128}]
    listed = sweep.model_copy(update={"start_with": [{BATCH: 128}]})
    assert [point.settings for point in informed_points(listed)] == [{BATCH: 32}]
