"""The sizes at which a costly function stays within a capacity, found with few evaluations."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache

Stretch = tuple[int, int]
"""First and last of consecutive sizes over which a peak is non-decreasing and convex."""


class Feasible:
    """The sizes at which a peak is within a capacity, found with as few evaluations as can be.

    Args:
        peak: Bytes by size.
        stretches: Ascending and without gaps. From one to the next the peak may fall, but the peaks at their beginnings
            do not.
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
        """The largest size that fits; 0 if none does."""
        return self._end(len(self._stretches) - 1) if self._stretches else 0

    def __contains__(self, size: int) -> bool:
        number = bisect_right(self._stretches, (size, math.inf)) - 1
        return number >= 0 and self._stretches[number][0] <= size <= self._end(number)

    def _end(self, number: int) -> int:
        if number not in self._ends:
            self._ends[number] = self._last_in(*self._stretches[number])
        return self._ends[number]

    def _last_in(self, first: int, last: int) -> int:
        """Last size that fits in a stretch whose first one does.

        A chord of a convex function lies above it, so where the chord meets the capacity fits. A line through two
        points that fit lies below it further on, so where that line meets the capacity nothing more fits. Within one
        piece of a piecewise linear function both are exact. Each is checked, so rounding costs no exactness. Where a
        piece is flat the chord creeps; a round that does not halve what is left therefore looks at its middle too.
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
        """The bracket after looking at a size, if it lies inside."""
        if not fits < size < exceeds:
            return fits, exceeds
        return (size, exceeds) if self._peak(size) <= self._capacity else (fits, size)
