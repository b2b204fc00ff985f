"""A space holds the values that Optuna accepts for it, found without Optuna."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import example, given
from optuna.trial import TrialState, create_trial

from sweeps.search_space.distribution import Distribution
from sweeps.search_space.optuna_space import optuna_distribution

RANGES = st.sampled_from(
    [
        Distribution(uniform=(-1.5, 3.0)),
        Distribution(log_uniform=(1e-4, 1e-2)),
        Distribution(int_uniform=(2, 8)),
        Distribution(log_int_uniform=(8, 256)),
    ]
)
CHOICES = st.lists(st.sampled_from(["auto", "bf16", 1, 16, 0.25, True]), min_size=1, unique_by=repr)
VALUES = (
    st.sampled_from(["auto", "none", None, True, 1e-4, 1e-2, 2.5, 3, 8, 256, float("inf"), float("nan"), 10**400])
    | st.integers(-10, 300)
    | st.floats(-3, 10)
)


def accepted_by_optuna(distribution: Distribution, value: Any) -> bool:
    """Optuna's own public check: it refuses a trial whose value lies outside its distribution."""
    try:
        create_trial(state=TrialState.FAIL, params={"": value}, distributions={"": optuna_distribution(distribution)})
    except (TypeError, ValueError, OverflowError):
        return False
    return True


@given(RANGES, VALUES.filter(lambda value: not isinstance(value, bool)))
@example(Distribution(int_uniform=(2, 8)), 2.5)
@example(Distribution(log_uniform=(1e-4, 1e-2)), 1e-4)
def test_a_range_holds_the_values_that_optuna_accepts(distribution: Distribution, value: Any) -> None:
    assert distribution.holds(value) == accepted_by_optuna(distribution, value)


@given(CHOICES.map(lambda values: Distribution(choice=tuple(values))), VALUES)
def test_a_choice_holds_the_values_that_optuna_accepts(distribution: Distribution, value: Any) -> None:
    assert distribution.holds(value) == accepted_by_optuna(distribution, value)
