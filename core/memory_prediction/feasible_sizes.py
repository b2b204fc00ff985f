"""Find the sizes at which a costly function stays within a capacity, with few evaluations."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache

Stretch = tuple[int, int]
"""(first, last) of consecutive sizes over which the peak is non-decreasing and convex."""


class Feasible:
    """The set of sizes whose peak is within a capacity, with few evaluations of the peak.

    Args:
        peak: Bytes as a function of the size.
        capacity: Bytes available.
        stretches: Ascending, without gaps. The peak may fall between stretches, but not between their first sizes.
    """

    def __init__(self, peak: Callable[[int], int], capacity: int, stretches: Sequence[Stretch]) -> None:
        self._peak = lru_cache(maxsize=None)(peak)
        self._capacity = capacity
        low, high = -1, len(stretches)
        while high - low > 1:
            middle = (low + high) // 2
            if self._peak(stretches[middle][0]) <= capacity:
                low = middle
            else:
                high = middle
        self._stretches = stretches[: low + 1]
        self._ends: dict[int, int] = {}

    @property
    def largest(self) -> int:
        """The largest size that fits; 0 if none fits."""
        return self._end(len(self._stretches) - 1) if self._stretches else 0

    def __contains__(self, size: int) -> bool:
        number = bisect_right(self._stretches, (size, math.inf)) - 1
        return number >= 0 and self._stretches[number][0] <= size <= self._end(number)

    def _end(self, number: int) -> int:
        if number not in self._ends:
            self._ends[number] = self._last_in(*self._stretches[number])
        return self._ends[number]

    def _last_in(self, first: int, last: int) -> int:
        """Last size that fits in a stretch whose first size fits.

        A chord of a convex function lies above it, so the size where the chord reaches the capacity fits. The line
        through two fitting points lies below the function beyond them, so nothing fits beyond the size where that line
        reaches the capacity. Both bounds are exact within one linear piece, and both are checked, so rounding does no
        harm. On flat pieces the chord converges slowly; a round that does not halve the bracket also tests its middle.
        """
        peak, capacity = self._peak, self._capacity
        if peak(first) > capacity:
            return first - 1
        if peak(last) <= capacity:
            return last
        fits, exceeds = first, last
        while exceeds - fits > 1:
            width = exceeds - fits
            room, rise = capacity - peak(fits), peak(exceeds) - peak(fits)
            guess = min(max(fits + room * width // rise, fits + 1), exceeds - 1)
            if peak(guess) > capacity:
                exceeds = guess
            else:
                slope = (peak(guess) - peak(fits)) / (guess - fits)
                fits = guess
                bound = guess + int((capacity - peak(guess)) / slope) + 1 if slope > 0 else exceeds
                fits, exceeds = self._narrowed(fits, exceeds, bound)
            if exceeds - fits > width // 2:
                fits, exceeds = self._narrowed(fits, exceeds, (fits + exceeds) // 2)
        return fits

    def _narrowed(self, fits: int, exceeds: int, size: int) -> tuple[int, int]:
        """The bracket after testing a size; unchanged if the size lies outside."""
        if not fits < size < exceeds:
            return fits, exceeds
        return (size, exceeds) if self._peak(size) <= self._capacity else (fits, size)
