"""The search against looking at every size."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.memory_prediction.feasible_sizes import Feasible


@settings(max_examples=200, deadline=None)
@example(pieces=[(14488, 71), (15242, 0)], last=13, capacity=15269)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**7)), min_size=1, max_size=4),
    last=st.integers(1, 4096),
    capacity=st.integers(0, 3 * 10**10),
)
def test_search_is_exact_and_bounded_on_any_maximum_of_lines(pieces, last, capacity):
    asked: set[int] = set()

    def peak(size: int) -> int:
        asked.add(size)
        return max(offset + slope * size for offset, slope in pieces)

    found = Feasible(peak, capacity, [(1, last)]).largest
    # Each line meets the capacity at a place that arithmetic gives; below the first of them all lines fit.
    meets = [
        last if slope == 0 and offset <= capacity else (capacity - offset) // slope if slope else 0
        for offset, slope in pieces
    ]
    assert found == max(0, min(last, *meets))
    # Both ends, and at most three looks for each time that what is left is halved.
    assert len(asked) <= 2 + 3 * math.ceil(math.log2(last + 1)), len(asked)


@settings(max_examples=200, deadline=None)
@given(
    jumps=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 1000), st.integers(0, 500)), min_size=1, max_size=8),
    capacity=st.integers(0, 40_000),
)
def test_search_is_exact_where_the_peak_falls_between_stretches(jumps, capacity):
    # Each stretch rises by its slope from a beginning above the beginning of the one before.
    peaks: dict[int, int] = {}
    stretches: list[tuple[int, int]] = []
    beginning = 0
    for length, slope, rise in jumps:
        first = len(peaks) + 1
        beginning += rise
        peaks |= {first + place: beginning + slope * place for place in range(length)}
        stretches.append((first, first + length - 1))
    feasible = Feasible(peaks.__getitem__, capacity, stretches)
    assert {size for size in range(len(peaks) + 2) if size in feasible} == {
        size for size, peak in peaks.items() if peak <= capacity
    }
