"""Processes that train side by side, real ones."""

import pytest

from core.costs.lane_benchmark import Way, measure_side_by_side
from core.settings.run_config import RunConfig
from patience import HANGS_AFTER_S

RUN = RunConfig.model_validate(
    {
        "model": {"layers": 1, "width": 16, "heads": 1, "sequence_length": 16},
        "objective": "masked_lm",
        "training": {"tokens": 1000},
    }
)


@pytest.mark.long
def test_each_way_is_measured_with_its_own_threads_and_all_its_processes() -> None:
    ways = [Way(2, 1), Way(1, 1)]
    # With its usual patience it gives up where a machine is too busy to learn anything.
    paces = measure_side_by_side(RUN, ways, vocabulary_size=100, rows=4, timeout_s=HANGS_AFTER_S)
    assert [pace.way for pace in paces] == ways
    assert all(pace.tokens_per_s is not None and pace.tokens_per_s > 0 for pace in paces)


@pytest.mark.long
def test_a_way_for_which_there_is_no_memory_has_no_pace_and_nothing_hangs() -> None:
    (pace,) = measure_side_by_side(RUN, [Way(1, 1)], vocabulary_size=100, rows=2**40)
    assert pace.tokens_per_s is None
