import pytest
from hypothesis import given
from hypothesis import strategies as st
from swept_folder import example_sweep

from gpu_cards import a_card
from sweeps.lanes.lane_planning import ResourcesError, plan_lanes, worker_memory_bytes
from sweeps.planning.sweep_plan import plan_sweep
from sweeps.settings.sweep_sections import ResourcesConfig


@given(cpus=st.integers(1, 64), workers=st.integers(1, 8), trials=st.integers(1, 40))
def test_lanes_never_use_more_cores_than_there_are_unless_one_trial_needs_them(
    cpus: int, workers: int, trials: int
) -> None:
    lanes = plan_lanes(ResourcesConfig(workers_per_trial=workers), num_trials=trials, num_cpus=cpus, num_gpus=0)
    assert 1 <= lanes.count <= trials
    assert lanes.threads_per_worker >= 1
    assert lanes.count * workers * lanes.threads_per_worker <= max(cpus, workers)


@given(
    nodes=st.lists(st.integers(1, 32), min_size=1, max_size=5),
    workers=st.integers(1, 4),
    trials=st.integers(1, 40),
    asked=st.one_of(st.just("auto"), st.integers(1, 12)),
)
def test_the_nodes_hold_all_planned_lanes_and_no_node_has_more_threads_than_cores(
    nodes: list[int], workers: int, trials: int, asked: int | str
) -> None:
    resources = ResourcesConfig.model_validate({"workers_per_trial": workers, "concurrent_trials": asked})
    lanes = plan_lanes(resources, num_trials=trials, num_cpus=sum(nodes), num_gpus=0, nodes=as_ray_says(nodes))
    held = lanes.held_by(as_ray_says(nodes))
    # Where there is less than a core for each, Ray may not find room for the last; the plan never asks for more.
    assert held >= lanes.count or lanes.cpus_per_worker < 1
    for cpus in nodes:
        on_this_node = int(cpus / lanes.cpus_per_worker + 1e-6)
        assert on_this_node * lanes.threads_per_worker <= cpus or lanes.cpus_per_worker < 1


def as_ray_says(nodes: list[int]) -> list[dict[str, float]]:
    return [{"CPU": float(cpus)} for cpus in nodes]


def test_workers_on_gpus_get_threads_of_the_nodes_that_have_gpus() -> None:
    nodes = [{"CPU": 64.0}, {"CPU": 4.0, "GPU": 2.0}]
    lanes = plan_lanes(ResourcesConfig(), num_trials=9, num_cpus=68, num_gpus=2, nodes=nodes)
    assert (lanes.count, lanes.threads_per_worker, lanes.cpus_per_worker) == (2, 2, 2.0)
    assert lanes.held_by(nodes) == 2


@given(cpus=st.integers(1, 16), workers=st.integers(1, 40))
def test_one_trial_of_many_workers_fits_a_small_machine(cpus: int, workers: int) -> None:
    lanes = plan_lanes(ResourcesConfig(workers_per_trial=workers), num_trials=1, num_cpus=cpus, num_gpus=0)
    assert lanes.cpus_per_worker * workers * lanes.count <= cpus + 1e-9
    assert lanes.held_by([{"CPU": float(cpus)}]) == 1


def test_a_node_more_is_a_lane_more_up_to_the_trials_and_up_to_what_the_file_says() -> None:
    one = [{"CPU": 4.0}]
    lanes = plan_lanes(ResourcesConfig(), num_trials=9, num_cpus=4, num_gpus=0)
    assert [lanes.held_by(one * count) for count in (0, 1, 2, 3)] == [0, 4, 8, 9]
    two = plan_lanes(ResourcesConfig(concurrent_trials=2), num_trials=9, num_cpus=4, num_gpus=0)
    assert (two.count, two.threads_per_worker, two.cpus_per_worker) == (2, 2, 2.0)
    assert [two.held_by(one * count) for count in (0, 1, 2)] == [0, 2, 2]


def test_small_models_share_a_gpu_with_their_part_of_its_memory_each() -> None:
    lanes = plan_lanes(ResourcesConfig(concurrent_trials=6), num_trials=9, num_cpus=16, num_gpus=2)
    assert (lanes.count, lanes.gpus_per_worker) == (6, 0.3333)
    assert "6 at a time on 2 GPUs, 3 to a GPU" in lanes.reason
    assert lanes.held_by([{"CPU": 8.0, "GPU": 1.0}] * 2) == 6
    share = worker_memory_bytes(ResourcesConfig(), lanes, device_bytes=24 * 2**30)
    alone = worker_memory_bytes(
        ResourcesConfig(),
        plan_lanes(ResourcesConfig(), num_trials=9, num_cpus=16, num_gpus=2),
        device_bytes=24 * 2**30,
    )
    # What the contexts of the two others take is nobody's.
    assert 7 * 2**30 < share < alone / 3


@pytest.mark.long
def test_a_share_of_a_gpu_that_the_model_does_not_fit_in_is_refused_with_the_numbers() -> None:
    wide = example_sweep(
        model={"layers": 1, "width": 768, "heads": 12, "sequence_length": 128},
        search={"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        start_with=[],
        training={"micro_batch_size": 8, "batch_size": 8},
        resources={"concurrent_trials": 8, "device": "gpu", "memory": "1GiB"},
    )
    with pytest.raises(ResourcesError, match=r"concurrent_trials=8 gives each trial 0.12 of a GPU, which is 1.00 GiB"):
        plan_sweep(wide, vocabulary_size=100_000, num_cpus=16, num_gpus=1, cards=lambda: [a_card()])


def test_a_trial_with_more_workers_than_gpus_is_refused_with_the_numbers() -> None:
    with pytest.raises(ResourcesError, match=r"workers_per_trial=4 needs as many GPUs; the cluster has 2"):
        plan_lanes(ResourcesConfig(workers_per_trial=4), num_trials=3, num_cpus=16, num_gpus=2)


def test_more_lanes_than_gpus_are_refused_with_what_fits() -> None:
    with pytest.raises(ResourcesError, match=r"needs 6 GPUs; the cluster has 4, .* Use concurrent_trials: 2"):
        plan_lanes(ResourcesConfig(workers_per_trial=2, concurrent_trials=3), num_trials=9, num_cpus=16, num_gpus=4)


def test_memory_is_what_the_file_says_or_a_share_of_what_the_worker_has() -> None:
    lanes = plan_lanes(ResourcesConfig(), num_trials=2, num_cpus=2, num_gpus=0)
    assert worker_memory_bytes(ResourcesConfig(memory=1000), lanes) == 1000
    whole = worker_memory_bytes(ResourcesConfig(), lanes)
    half = worker_memory_bytes(ResourcesConfig(memory="50%"), lanes)
    # The host's free memory moves a little between the two readings.
    assert half == pytest.approx(whole / 2, rel=0.1)
    assert ResourcesConfig(memory=0.5).memory == "50%"
    assert ResourcesConfig(memory=0.125).memory == "12.5%"


@given(gpus=st.integers(1, 16), asked=st.integers(1, 64), trials=st.integers(1, 64))
def test_no_card_is_idle_while_another_has_two_lanes(gpus: int, asked: int, trials: int) -> None:
    lanes = plan_lanes(ResourcesConfig(concurrent_trials=asked), num_trials=trials, num_cpus=64, num_gpus=gpus)
    lanes_per_gpu = round(1 / lanes.gpus_per_worker)
    assert lanes.count <= min(asked, trials)
    assert lanes.count == min(asked, trials) or lanes.count == lanes_per_gpu * gpus
    assert lanes_per_gpu == 1 or lanes.count == lanes_per_gpu * gpus
