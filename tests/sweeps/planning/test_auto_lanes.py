"""How many lanes `concurrent_trials: auto` comes to, and that it says why."""

import os
from pathlib import Path

import pytest

from core.costs.lane_benchmark import Way
from sweep_examples import tiny_sweep
from sweeps.lanes.lane_planning import AutoLanes, plan_lanes, this_machine
from sweeps.memory_knowledge.measurement_store import KeptMeasurements
from sweeps.planning import auto_lanes as room
from sweeps.planning.auto_lanes import LanePace, LanePaces, auto_lanes
from sweeps.planning.sweep_plan import plan_sweep
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_sections import ResourcesConfig

LONG = ("budget.trials=40", "budget.tokens_per_trial=10M", "training.micro_batch_size=8")
CORES = os.cpu_count() or 1
needs_two_cores = pytest.mark.skipif(CORES < 2, reason="one core alone (run on a machine with two)")


def choice(sweep: SweepConfig, results: Path) -> AutoLanes | None:
    return auto_lanes(sweep, cluster={"num_cpus": CORES, "num_gpus": 0}, vocabulary_size=1000, results_folder=results)


def keep(sweep: SweepConfig, results: Path, rates: dict[Way, float | None]) -> None:
    shape = room.speed_shape(middle_run(sweep), 1000)
    paces = tuple(LanePace(processes=w.processes, threads=w.threads, tokens_per_s=r) for w, r in rates.items())
    file = results / "memory" / "cpu-lanes.json"
    KeptMeasurements(file, LanePaces, what="lanes").add({shape: LanePaces(shape=shape, paces=paces)})


@needs_two_cores
@pytest.mark.parametrize(("gain", "chosen"), [(0.5, 0), (1.04, 0), (1.2, -1)], ids=["slower", "the same", "faster"])
def test_the_fewest_lanes_win_that_are_as_fast_as_the_fastest_and_the_plan_says_by_how_much(
    tmp_path: Path, gain: float, chosen: int
) -> None:
    sweep = tiny_sweep(*LONG)
    ways = room._ways(sweep, is_on_gpu=False)
    # All but the last are as fast as the first.
    keep(sweep, tmp_path, dict.fromkeys(ways[:-1], 10_000.0) | {ways[-1]: 10_000 * gain})
    found = choice(sweep, tmp_path)
    assert found is not None
    assert (found.processes, found.threads) == (ways[chosen].processes, ways[chosen].threads)
    plan = plan_sweep(sweep, vocabulary_size=1000, auto=found, num_cpus=CORES, num_gpus=0)
    assert (plan.lanes.count, plan.lanes.threads_per_worker) == (ways[chosen].processes, ways[chosen].threads)
    assert "10,000 tokens/s" in plan.lanes.reason
    assert f"{10_000 * gain:,.0f} tokens/s" in plan.lanes.reason


@needs_two_cores
def test_a_way_that_ran_out_of_memory_is_not_chosen(tmp_path: Path) -> None:
    sweep = tiny_sweep(*LONG)
    ways = room._ways(sweep, is_on_gpu=False)
    keep(sweep, tmp_path, dict.fromkeys(ways[:-1], 10.0) | {ways[-1]: None})
    found = choice(sweep, tmp_path)
    assert found is not None
    assert found.processes < ways[-1].processes
    assert "ran out of memory" in found.reason


@pytest.mark.long
@needs_two_cores
def test_a_long_sweep_is_measured_and_a_short_one_is_not(tmp_path: Path) -> None:
    short = choice(tiny_sweep(), tmp_path)
    assert short == AutoLanes(min(CORES, 6), max(1, CORES // 6), "not measured: the sweep is short")
    long = choice(tiny_sweep(*LONG), tmp_path)
    assert long is not None
    # Beside other work, or where that leaves no time, the words say so.
    assert "measured" in long.reason
    assert 1 <= long.processes * long.threads <= CORES


@needs_two_cores
def test_lanes_that_memory_does_not_hold_are_no_choice(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Of one worker: more than half of what there is, so that two do not fit.
    found = choice(tiny_sweep(*LONG, f"resources.memory={machine * 2 // 2**20}MiB"), tmp_path)
    assert found == AutoLanes(1, CORES, "memory holds no more")


@needs_two_cores
def test_a_model_in_the_file_that_no_trial_has_does_not_count(tmp_path: Path) -> None:
    large = "model.width=1024"
    alone = tiny_sweep(*LONG, large, "resources.memory=20MiB")
    assert choice(alone, tmp_path) == AutoLanes(1, CORES, "memory holds no more")
    swept = tiny_sweep(*LONG, large, "resources.memory=20MiB", "search={model.width: {choice: [32, 48, 64]}}")
    assert middle_run(swept).model.width == 48
    keep(swept, tmp_path, dict.fromkeys(room._ways(swept, is_on_gpu=False), 10_000.0))
    found = choice(swept, tmp_path)
    assert found is not None
    assert "10,000 tokens/s" in found.reason


def test_one_trial_or_a_number_in_the_file_leaves_nothing_to_measure(tmp_path: Path) -> None:
    assert choice(tiny_sweep("budget.trials=1"), tmp_path) == AutoLanes(1, CORES, "")
    assert choice(tiny_sweep(*LONG, "resources.concurrent_trials=2"), tmp_path) is None
    assert not (tmp_path / "memory").exists()


def test_nodes_are_divided_as_one_machine_was_found_best() -> None:
    auto = AutoLanes(2, 4, "measured")
    nodes = [{"CPU": 8.0}, {"CPU": 8.0}, {"CPU": 4.0}]
    lanes = plan_lanes(ResourcesConfig(), num_trials=40, num_cpus=20, num_gpus=0, nodes=nodes, auto=auto)
    assert (lanes.count, lanes.threads_per_worker, lanes.held_by(nodes)) == (5, 4, 5)
    shared = plan_lanes(ResourcesConfig(), num_trials=40, num_cpus=16, num_gpus=2, auto=auto)
    assert (shared.count, shared.gpus_per_worker) == (4, 0.5)
    assert this_machine()["num_cpus"] == CORES
