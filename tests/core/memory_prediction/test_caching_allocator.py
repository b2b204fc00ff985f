"""The caching allocator's policy, told by small stories, and against a plain restatement of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.memory_prediction.caching_allocator import (
    AllocationEvent,
    CachingAllocator,
    CapacityExceededError,
    smallest_capacity_bytes,
)

MIB = 2**20


def replayed(events: list[AllocationEvent], capacity_bytes: int | None = None) -> CachingAllocator:
    allocator = CachingAllocator(capacity_bytes)
    allocator.replay(events)
    return allocator


@pytest.mark.parametrize(
    ("asked_bytes", "allocated_bytes", "reserved_bytes"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        # A remainder of at most 1 MiB is not split off, so it counts as allocated.
        (11 * MIB, 12 * MIB, 12 * MIB),
        (21 * MIB, 22 * MIB, 22 * MIB),
        (21 * MIB - 512, 21 * MIB - 512, 22 * MIB),
    ],
)
def test_a_request_reserves_the_segment_that_the_policy_names(asked_bytes, allocated_bytes, reserved_bytes):
    allocator = replayed([(1, asked_bytes)])
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated_bytes, reserved_bytes)


def test_small_requests_share_one_segment():
    assert replayed([(key, MIB // 2) for key in range(4)]).reserved_bytes == 2 * MIB
    assert replayed([(key, MIB // 2) for key in range(5)]).reserved_bytes == 4 * MIB


def test_a_freed_block_serves_the_next_request_of_its_size():
    assert replayed([(1, 30 * MIB), (1, -1), (2, 30 * MIB)]).peak_reserved_bytes == 30 * MIB


def test_a_freed_block_does_not_serve_a_larger_request():
    assert replayed([(1, 30 * MIB), (1, -1), (2, 40 * MIB)]).peak_reserved_bytes == 70 * MIB


def test_free_neighbours_are_joined():
    halves = [(1, 40 * MIB), (1, -1), (2, 20 * MIB), (3, 20 * MIB), (2, -1), (3, -1), (4, 40 * MIB)]
    assert replayed(halves).peak_reserved_bytes == 40 * MIB
    assert replayed([*halves[:4], (3, -1), (2, -1), (4, 40 * MIB)]).peak_reserved_bytes == 40 * MIB


def test_the_smallest_block_that_fits_is_taken():
    # The 30 MiB request must leave the 50 MiB block to the last request.
    events = [(1, 50 * MIB), (2, 30 * MIB), (1, -1), (2, -1), (3, 30 * MIB), (4, 50 * MIB)]
    assert replayed(events).peak_reserved_bytes == 80 * MIB


def test_short_of_memory_unused_segments_are_given_back_first():
    growing = [(1, 30 * MIB), (1, -1), (2, 40 * MIB)]
    assert replayed(growing, 40 * MIB).reserved_bytes == 40 * MIB
    with pytest.raises(CapacityExceededError):
        replayed(growing, 40 * MIB - 1)


def test_a_segment_in_part_use_cannot_be_given_back():
    pinned = [(1, 20 * MIB), (2, 20 * MIB), (1, -1), (2, -1), (3, 2 * MIB), (4, 40 * MIB)]
    assert smallest_capacity_bytes(pinned, tolerance=0) == 60 * MIB


def test_smallest_capacity_is_just_enough():
    events = [(1, 30 * MIB), (2, 12 * MIB), (1, -1), (3, 44 * MIB), (2, -1), (4, 9 * MIB), (3, -1), (5, 64 * MIB)]
    capacity_bytes = smallest_capacity_bytes(events, tolerance=0)
    replayed(events, capacity_bytes)
    with pytest.raises(CapacityExceededError):
        replayed(events, capacity_bytes - 1)


@st.composite
def histories(draw: st.DrawFn) -> list[AllocationEvent]:
    events: list[AllocationEvent] = []
    living: list[int] = []
    for key in range(draw(st.integers(1, 60))):
        if living and draw(st.booleans()):
            events.append((living.pop(draw(st.integers(0, len(living) - 1))), -1))
        events.append((key, draw(st.integers(1, 4 * MIB) | st.integers(1, 2000) | st.integers(MIB, 60 * MIB))))
        living.append(key)
    return events


class PlainAllocator:
    """The same policy by exhaustive search over segments held as lists of [offset, bytes, key or None]."""

    def __init__(self) -> None:
        self.segments: list[tuple[bool, list[list[int | None]]]] = []

    @property
    def reserved_bytes(self) -> int:
        return sum(block[1] for _, blocks in self.segments for block in blocks)

    def replay(self, events: list[AllocationEvent]) -> None:
        for key, num_bytes in events:
            if num_bytes > 0:
                self._allocate(key, -(-num_bytes // 512) * 512)
            else:
                self._release(key)

    def _allocate(self, key: int, wanted: int) -> None:
        small = wanted <= MIB
        fits = [
            (block[1], number, block[0])
            for number, (is_small, blocks) in enumerate(self.segments)
            for block in blocks
            if is_small == small and block[2] is None and block[1] >= wanted
        ]
        if not fits:
            size = 2 * MIB if small else 20 * MIB if wanted < 10 * MIB else -(-wanted // (2 * MIB)) * 2 * MIB
            self.segments.append((small, [[0, size, None]]))
            fits = [(size, len(self.segments) - 1, 0)]
        _, number, offset = min(fits)
        blocks = self.segments[number][1]
        place = next(place for place, block in enumerate(blocks) if block[0] == offset)
        rest = blocks[place][1] - wanted
        if (small and rest >= 512) or rest > MIB:
            blocks[place : place + 1] = [[offset, wanted, key], [offset + wanted, rest, None]]
        else:
            blocks[place][2] = key

    def _release(self, key: int) -> None:
        for _, blocks in self.segments:
            for block in blocks:
                if block[2] == key:
                    block[2] = None
            for place in range(len(blocks) - 1, 0, -1):
                if blocks[place][2] is None and blocks[place - 1][2] is None:
                    blocks[place - 1][1] += blocks.pop(place)[1]


@settings(max_examples=80, deadline=None)
@given(histories())
def test_any_history_reserves_what_the_plain_restatement_reserves(events):
    plain = PlainAllocator()
    plain.replay(events)
    assert replayed(events).reserved_bytes == plain.reserved_bytes


@settings(max_examples=50, deadline=None)
@given(histories())
def test_smallest_capacity_lies_between_allocated_and_reserved(events):
    unlimited = replayed(events)
    capacity_bytes = smallest_capacity_bytes(events)
    assert unlimited.peak_allocated_bytes <= capacity_bytes <= unlimited.peak_reserved_bytes
    replayed(events, capacity_bytes)
