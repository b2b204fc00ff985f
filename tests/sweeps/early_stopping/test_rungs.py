import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.early_stopping.rungs import Rungs, expected_tokens, rung_tokens
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_sections import EarlyStoppingConfig

RUNG = 1000


def test_rungs_are_a_factor_apart_and_end_before_the_trial_does() -> None:
    assert rung_tokens(EarlyStoppingConfig(reduction_factor=3, first_rung=0.1), 900_000) == (100_000, 300_000)


def test_without_early_stopping_there_are_no_rungs() -> None:
    assert rung_tokens(EarlyStoppingConfig(method="none"), 900_000) == ()


def test_a_trial_is_expected_to_train_what_rungs_leave_of_its_tokens() -> None:
    # All come to 1/9, a third of them to 1/3, a ninth to the end.
    rungs = EarlyStoppingConfig(reduction_factor=3, first_rung=0.1)
    assert expected_tokens(rungs, 900_000) == pytest.approx(100_000 + 200_000 / 3 + 600_000 / 9)
    for method in ("none", "median"):
        assert expected_tokens(EarlyStoppingConfig(method=method), 900_000) == 900_000


def test_a_loss_that_is_not_a_number_never_survives_a_rung() -> None:
    for loss in (math.nan, math.inf):
        assert not Rungs((RUNG,), 3).judge(1, RUNG, loss).continues


def test_the_reason_names_rung_loss_and_what_it_was_compared_with() -> None:
    rungs = Rungs((RUNG,), 2)
    rungs.judge(1, RUNG, 4.0)
    decision = rungs.judge(2, RUNG, 5.0)
    assert decision.reason == ("loss 5.0000 at 1,000 tokens is not among the best 1 of 2 trials there (4.0000 or less)")


def test_restored_rungs_judge_like_those_that_saw_every_trial() -> None:
    losses = {number: 5.0 - 0.3 * number for number in range(1, 7)}
    seen, restored = Rungs((RUNG,), 3), Rungs((RUNG,), 3)
    for number, loss in losses.items():
        seen.judge(number, RUNG, loss)
    restored.restore(
        TrialRecord(number=number, settings={}, rung_losses={RUNG: loss}) for number, loss in losses.items()
    )
    for loss in (3.0, 3.4, 4.0, 6.0):
        assert seen.judge(99, RUNG, loss) == restored.judge(99, RUNG, loss)


@given(losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=40, unique=True), factor=st.integers(2, 5))
def test_the_best_trial_so_far_always_continues_and_the_worst_never_after_enough_trials(
    losses: list[float], factor: int
) -> None:
    rungs = Rungs((RUNG,), factor)
    for number, loss in enumerate(losses):
        decision = rungs.judge(number, RUNG, loss)
        seen = losses[: number + 1]
        assert decision.continues or loss > min(seen)
        if len(seen) >= factor and loss == max(seen) and len(seen) > 1:
            assert not decision.continues


@pytest.mark.parametrize("tokens", [999, 1000, 1001])
def test_a_rung_is_reached_at_its_tokens_and_only_once(tokens: int) -> None:
    rungs = Rungs((RUNG,), 3)
    assert rungs.reached(1, tokens) == (RUNG if tokens >= RUNG else None)
    rungs.judge(1, RUNG, 3.0)
    assert rungs.reached(1, tokens) is None
