"""The median rule against its definition."""

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from sweeps.early_stopping.median_stopping import MedianRule
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_sections import EarlyStoppingConfig

RUNGS = (100, 200, 300)


def test_rungs_of_the_median_rule_are_evenly_spaced_and_end_before_the_trial_does() -> None:
    config = EarlyStoppingConfig(method="median", first_rung=0.25)
    assert rung_tokens(config, 1000) == (250, 500, 750)


@given(
    curves=st.lists(
        st.lists(st.floats(0.5, 9), min_size=len(RUNGS), max_size=len(RUNGS)), min_size=4, max_size=9
    )
)  # fmt: skip
def test_trial_ends_when_its_best_is_worse_than_the_median_of_the_averages(curves: list[list[float]]) -> None:
    *others, mine = curves
    rule = MedianRule(RUNGS)
    rule.restore(
        TrialRecord(number=number, settings={}, rung_losses=dict(zip(RUNGS, curve, strict=True)))
        for number, curve in enumerate(others, start=1)
    )
    for place, rung in enumerate(RUNGS, start=1):
        median = statistics.median(statistics.fmean(curve[:place]) for curve in others)
        assert rule.judge(99, rung, mine[place - 1]).continues == (min(mine[:place]) <= median)


def test_too_few_others_stop_nobody_and_a_loss_that_is_no_number_never_continues() -> None:
    rule = MedianRule(RUNGS)
    assert rule.judge(1, 100, 1.0).continues
    assert rule.judge(2, 100, 9.0).continues
    assert not rule.judge(3, 100, math.nan).continues
    assert rule.reached(3, 150) is None
    assert rule.reached(3, 250) == 200
