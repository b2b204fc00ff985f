from typing import Any

import pytest

from core.settings.run_config import RunConfig
from sweep_examples import tiny_sweep
from sweeps.memory_knowledge.frontier_map import least_demanding, map_frontier
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep
from sweeps.settings.sweep_config import SweepConfig

WIDTHS = "search.model.width.choice=[16, 32, 64, 128]"


def frontier(limit_bytes: int) -> MemoryFrontier:
    """A row needs a byte for each unit of width, a batch of several micro-batches ten more."""

    def predict(run: RunConfig) -> int:
        asked = run.training.micro_batch_size
        assert isinstance(asked, int)
        return min(asked, run.training.batch_size) * run.model.width + 10 * (asked < run.training.batch_size)

    return MemoryFrontier(limit_bytes, num_workers=1, predict=predict)


def real_plan(sweep: SweepConfig) -> SweepPlan:
    return plan_sweep(sweep, vocabulary_size=1000, num_cpus=2, num_gpus=0)


def test_the_frontier_is_where_the_prediction_meets_the_limit() -> None:
    found = map_frontier(tiny_sweep(WIDTHS), frontier(522), device="cpu")
    assert found.axis == "model.width"
    assert {point.value: point.micro_batch_size for point in found.border} == {16: 32.0, 32: 16.0, 64: 8.0, 128: 4.0}


@pytest.mark.long
def test_the_axis_is_the_swept_setting_that_moves_memory_most_and_a_batch_only_for_want_of_another() -> None:
    masked = tiny_sweep("search.objective.masked_lm.masking_rate.uniform=[0.1, 0.5]")
    plan = real_plan(masked)
    assert map_frontier(masked, plan.frontier(), device="cpu").axis == "objective.masked_lm.masking_rate"
    without = tiny_sweep()
    assert map_frontier(without, real_plan(without).frontier(), device="cpu").axis in (None, "training.batch_size")


@pytest.mark.long
def test_the_frontier_of_real_predictions_is_the_largest_micro_batch_to_a_row() -> None:
    widths, sizes = "search.model.width.choice=[16, 64]", "search.training.micro_batch_size.choice=[1, 8, 32, 64]"
    sweep = tiny_sweep(widths, sizes, "search.training.batch_size.choice=[256]", "resources.memory=4MiB")
    plan = real_plan(sweep)
    for point in map_frontier(sweep, plan.frontier(), device="cpu").border:
        run = sweep.run_config({"model.width": point.value, "training.batch_size": 256})
        assert point.micro_batch_size == pytest.approx(plan.largest_micro_batch(run), rel=0.1, abs=1)


def test_a_swept_micro_batch_that_is_always_automatic_has_a_frontier_too() -> None:
    sweep = tiny_sweep(WIDTHS, "search.training.micro_batch_size.choice=[auto]")
    found = map_frontier(sweep, frontier(42), device="cpu")
    # Micro-batches of 1 and 2 rows are predicted: 16 + 10 and 32 + 10 bytes at a width of 16.
    assert {point.value: point.micro_batch_size for point in found.border}[16] == 2.0


def test_the_least_demanding_settings_are_found_though_no_corner_of_the_space_is_valid() -> None:
    widths, heads = "search.model.width.int_uniform=[31, 47]", "search.model.heads.int_uniform=[2, 3]"
    sweep = tiny_sweep(widths, heads)
    settings, _ = least_demanding(sweep, lambda one: 0 if sweep.fault_of(one) is None else None, enough=0)
    assert sweep.fault_of(settings) is None


@pytest.mark.parametrize("enough", [0, 10_000])
def test_the_least_demanding_settings_are_found_though_no_corner_of_the_space_is_the_least(enough: int) -> None:
    sweep = tiny_sweep(WIDTHS, "search.training.activation_checkpointing.choice=[false, true]")
    asked: list[dict[str, Any]] = []

    def num_bytes(settings: dict[str, Any]) -> int | None:
        asked.append(settings)
        if settings["model.width"] == 16:
            return None  # goes together with nothing
        saved = 50 if settings["training.activation_checkpointing"] else 0
        return int(settings["model.width"] * settings["training.micro_batch_size"] - saved)

    settings, least = least_demanding(sweep, num_bytes, enough=enough)
    if enough:
        assert len(asked) <= 12
    else:
        assert (settings["model.width"], settings["training.micro_batch_size"], least) == (32, 4, 32 * 4 - 50)
