"""Measuring micro-batches: which sizes, that the clock starts after the warm-up, and what does not fit."""

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from full_rows import a_run
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import VOCABULARY, small_corpus
from two_workers import on_workers

from core.costs.micro_batch_benchmark import fastest, measure_micro_batches, sizes_to_measure
from core.distributed.workers import Workers
from core.memory.memory_reports import MicroBatchSpeed
from core.memory_prediction.peak_memory import predict_memory
from core.settings.run_config import RunConfig
from core.step.optimizer_step import OptimizerStep

torch.set_num_threads(1)


def small_run(**changes: Any) -> RunConfig:
    return a_run(width=32, layers=1, heads=2, sequence_length=16, **changes)


@given(largest=st.integers(1, 5000), sequence_length=st.integers(1, 4096))
def test_sizes_ascend_to_the_largest_in_powers_of_two(largest: int, sequence_length: int) -> None:
    *powers, last = sizes_to_measure(largest=largest, sequence_length=sequence_length)
    assert last == largest
    assert all(size.bit_count() == 1 and size < largest for size in powers)
    assert all(2 * one == other for one, other in pairwise(powers))
    assert not powers or 2 * powers[-1] >= largest
    assert all(size * sequence_length >= 256 or size == 1 for size in powers)


def test_clock_starts_after_the_warm_up_and_larger_sizes_are_left_out_once_they_are_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that passes set themselves: four rows at once are fastest, and first passes take far longer."""
    plain = OptimizerStep.rehearse
    passes: dict[int, int] = {}
    clock_s = [0.0]

    def rehearse(step: OptimizerStep, rows: int) -> None:
        plain(step, rows)
        passes[rows] = passes.get(rows, 0) + 1
        clock_s[0] += 9.0 if passes[rows] == 1 else {2: 0.04, 4: 0.04}.get(rows, 0.03 * rows)

    monkeypatch.setattr(OptimizerStep, "rehearse", rehearse)
    monkeypatch.setattr(time, "perf_counter", lambda: clock_s[0])
    speeds = measure_micro_batches(small_run(), small_corpus(), workers=Workers(), sizes=(2, 4, 8, 16, 32, 64))
    assert {one.rows: one.rows_per_s for one in speeds} == pytest.approx({2: 50, 4: 100, 8: 1 / 0.03, 16: 1 / 0.03})
    assert fastest(speeds, largest=64) == 4
    assert fastest(speeds, largest=2) == 2


def test_size_that_does_not_fit_is_known_as_such_and_the_rest_is_measured() -> None:
    run = small_run()
    fits, does_not = (predict_memory(run, VOCABULARY.size, micro_batch_size=rows).peak_bytes for rows in (8, 128))
    speeds = measure_micro_batches(
        run, small_corpus(), workers=Workers(), sizes=(4, 8, 128), memory_limit_bytes=(fits + does_not) // 2,
        all_sizes=True,
    )  # fmt: skip
    assert [one.rows_per_s is None for one in speeds] == [False, False, True]
    assert all(one.peak_bytes is not None for one in speeds[:2])
    assert fastest(speeds, largest=128) in (4, 8)


def test_as_fast_within_a_hair_is_taken_smaller_and_nothing_that_fits_is_no_size() -> None:
    speeds = [MicroBatchSpeed(8, 100.0, 1), MicroBatchSpeed(16, 101.0, 1), MicroBatchSpeed(32, None, 1)]
    assert fastest(speeds, largest=32) == 8
    assert fastest(speeds[2:], largest=32) is None


def measured_by(workers: Workers) -> tuple[MicroBatchSpeed, ...]:
    return measure_micro_batches(small_run(), small_corpus(), workers=workers, sizes=(4, 8))


def test_workers_agree_on_the_speed_of_the_slowest() -> None:
    first, second = on_workers(2, measured_by)
    assert [(one.rows, one.rows_per_s) for one in first] == [(one.rows, one.rows_per_s) for one in second]
