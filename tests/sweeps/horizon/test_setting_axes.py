"""Settings as coordinates: back and forth, with the published shift where there is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.horizon.setting_axes import axes_of, coordinate_rows
from sweeps.search_space.distribution import Distribution
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE, MICRO_BATCH, SEED

SPACE = {
    LEARNING_RATE: Distribution(uniform=(1e-4, 1e-2)),
    BATCH: Distribution(choice=(64, 16, 256)),
    MICRO_BATCH: Distribution(choice=(4, 8)),
    SEED: Distribution(choice=(0, 1)),
    "model.layers": Distribution(int_uniform=(2, 8)),
    "training.weight_decay": Distribution(choice=(0.0, 0.1)),
    "model.form": Distribution(choice=("roberta", "modern")),
    "model.tied": Distribution(choice=(True, False)),
    "model.width": Distribution(choice=(64,)),
}
AXES = {axis.path: axis for axis in axes_of(SPACE)}


def test_settings_that_cannot_change_a_loss_are_no_axes() -> None:
    assert list(AXES) == [LEARNING_RATE, BATCH, "model.layers", "training.weight_decay", "model.form", "model.tied"]


def test_learning_rate_and_batch_size_have_logarithms_and_published_shifts() -> None:
    scales = {path: axis.scale for path, axis in AXES.items()}
    assert list(scales.values()) == ["log", "log", "linear", "linear", "words", "words"]
    assert [axis.exponent for axis in AXES.values()] == [0.307, 0.5, 0.0, 0.0, 0.0, 0.0]


@given(st.integers(1, 100_000), st.floats(1e-6, 1.0), st.integers(2, 8))
def test_a_coordinate_leads_back_to_its_value(batch: int, rate: float, layers: int) -> None:
    for path, value in ((BATCH, batch), (LEARNING_RATE, rate), ("model.layers", layers)):
        back = AXES[path].value_at(AXES[path].coordinate(value))
        assert back == pytest.approx(value, rel=1e-9)
        assert isinstance(back, int) == isinstance(value, int)


def test_unknown_words_and_zeros_have_coordinates_too() -> None:
    rows = coordinate_rows([AXES["model.form"], AXES[LEARNING_RATE]], [{"model.form": "other", LEARNING_RATE: 0.0}])
    assert rows[0, 0] == -1
    assert rows[0, 1] < AXES[LEARNING_RATE].coordinate(1e-8)


def test_batch_sizes_never_fall_below_one() -> None:
    assert AXES[BATCH].value_at(-5.0) == 1
