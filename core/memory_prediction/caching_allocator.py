"""Replay tensor allocations through a model of CUDA's caching allocator, to include its fragmentation in predictions.

The allocator divides segments that it keeps, so a freed block serves only requests that fit in it.

Source: c10/cuda/CUDACachingAllocator.cpp with default settings (no expandable segments, no garbage collection), one
stream.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

AllocationEvent = tuple[int, int]
"""(storage key, bytes): positive when the storage is allocated, negative when it is freed."""

_SMALLEST_BLOCK = 512
_SMALL_REQUEST = 2**20
"""Requests up to this size use the pool of small segments."""
_SMALL_SEGMENT = 2 * 2**20
_LARGE_SEGMENT = 20 * 2**20
_LARGE_REQUEST = 10 * 2**20
"""Requests from this size get a segment of their own size."""
_LARGE_ROUNDING = 2 * 2**20


class CapacityExceededError(Exception):
    """The replayed allocations exceed the capacity."""


def smallest_capacity_bytes(events: Sequence[AllocationEvent], *, tolerance: float = 0.002) -> int:
    """Smallest device capacity in bytes in which the allocations succeed; at most `tolerance` (relative) too large.

    It is below the reserved peak, because an allocator without memory frees unused segments and retries.
    """
    unlimited = CachingAllocator()
    unlimited.replay(events)
    too_small, enough = unlimited.peak_allocated_bytes - 1, unlimited.peak_reserved_bytes
    while enough - too_small > max(1, tolerance * enough):
        middle = (too_small + enough) // 2
        try:
            CachingAllocator(middle).replay(events)
            enough = middle
        except CapacityExceededError:
            too_small = middle
    return enough


@dataclass(slots=True, eq=False)
class _Block:
    """Part of a segment; neighbours in the same segment are linked."""

    address: int
    num_bytes: int
    is_small: bool
    is_free: bool = True
    before: "_Block | None" = None
    after: "_Block | None" = None


class CachingAllocator:
    """The bookkeeping of the allocator, without a device.

    Args:
        capacity_bytes: Maximum bytes of all segments; None is unlimited.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # sorted (bytes, address), by is_small
        self._at: dict[int, _Block] = {}  # free blocks by address
        self._taken: dict[int, _Block] = {}  # by storage key
        self._next_address = 0

    def replay(self, events: Sequence[AllocationEvent]) -> None:
        """Perform allocations and releases in order.

        Raises:
            CapacityExceededError: An allocation does not fit, even after freeing unused segments.
        """
        for key, num_bytes in events:
            if num_bytes > 0:
                self.allocate(key, num_bytes)
            else:
                self.release(key)

    def allocate(self, key: int, num_bytes: int) -> None:
        """Serve one request.

        Args:
            key: Unique among live allocations.

        Raises:
            CapacityExceededError: It does not fit, even after freeing unused segments.
        """
        wanted_bytes = max(_SMALLEST_BLOCK, _round_up(num_bytes, _SMALLEST_BLOCK))
        is_small = wanted_bytes <= _SMALL_REQUEST
        pool = self._free[is_small]
        best = bisect_left(pool, (wanted_bytes, -1))
        block = self._take_free(pool[best]) if best < len(pool) else self._new_segment(wanted_bytes, is_small)
        remaining_bytes = block.num_bytes - wanted_bytes
        if remaining_bytes >= _SMALLEST_BLOCK if is_small else remaining_bytes > _SMALL_REQUEST:
            rest = _Block(block.address + wanted_bytes, remaining_bytes, is_small, before=block, after=block.after)
            if rest.after is not None:
                rest.after.before = rest
            block.after = rest
            block.num_bytes = wanted_bytes
            self._put_free(rest)
        block.is_free = False
        self._taken[key] = block
        self.allocated_bytes += block.num_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def release(self, key: int) -> None:
        """Return an allocation to its pool, merged with free neighbours. Its segment stays reserved."""
        block = self._taken.pop(key)
        self.allocated_bytes -= block.num_bytes
        if block.after is not None and block.after.is_free:
            _join(block, self._take_free((block.after.num_bytes, block.after.address)))
        if block.before is not None and block.before.is_free:
            before = self._take_free((block.before.num_bytes, block.before.address))
            _join(before, block)
            block = before
        self._put_free(block)

    def _new_segment(self, wanted_bytes: int, is_small: bool) -> _Block:
        if is_small:
            segment_bytes = _SMALL_SEGMENT
        elif wanted_bytes < _LARGE_REQUEST:
            segment_bytes = _LARGE_SEGMENT
        else:
            segment_bytes = _round_up(wanted_bytes, _LARGE_ROUNDING)
        if self.capacity_bytes is not None and self.reserved_bytes + segment_bytes > self.capacity_bytes:
            self._give_back_unused_segments()
            if self.reserved_bytes + segment_bytes > self.capacity_bytes:
                raise CapacityExceededError(
                    f"a segment of {segment_bytes} bytes beyond the {self.reserved_bytes} reserved ones exceeds the "
                    f"capacity of {self.capacity_bytes} bytes"
                )
        self.reserved_bytes += segment_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        block = _Block(self._next_address, segment_bytes, is_small)
        self._next_address += segment_bytes
        return block

    def _give_back_unused_segments(self) -> None:
        for block in list(self._at.values()):
            if block.before is None and block.after is None:
                self._take_free((block.num_bytes, block.address))
                self.reserved_bytes -= block.num_bytes

    def _put_free(self, block: _Block) -> None:
        block.is_free = True
        self._at[block.address] = block
        insort(self._free[block.is_small], (block.num_bytes, block.address))

    def _take_free(self, entry: tuple[int, int]) -> _Block:
        block = self._at.pop(entry[1])
        pool = self._free[block.is_small]
        del pool[bisect_left(pool, entry)]
        return block


def _join(left: _Block, right: _Block) -> None:
    left.num_bytes += right.num_bytes
    left.after = right.after
    if left.after is not None:
        left.after.before = left


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
