import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.cluster import ResourcesError, plan_lanes, worker_memory_bytes
from sweeps.sweep_config import ResourcesConfig


@given(cpus=st.integers(1, 64), workers=st.integers(1, 8), trials=st.integers(1, 40))
def test_lanes_never_use_more_cores_than_there_are_unless_one_trial_needs_them(
    cpus: int, workers: int, trials: int
) -> None:
    lanes = plan_lanes(ResourcesConfig(workers_per_trial=workers), num_trials=trials, num_cpus=cpus, num_gpus=0)
    assert 1 <= lanes.count <= trials
    assert lanes.threads_per_worker >= 1
    assert lanes.count * workers * lanes.threads_per_worker <= max(cpus, workers)


def test_a_trial_with_more_workers_than_gpus_is_refused_with_the_numbers() -> None:
    with pytest.raises(ResourcesError, match=r"workers_per_trial=4 needs as many GPUs; the cluster has 2"):
        plan_lanes(ResourcesConfig(workers_per_trial=4), num_trials=3, num_cpus=16, num_gpus=2)


def test_more_lanes_than_gpus_are_refused_with_what_fits() -> None:
    with pytest.raises(ResourcesError, match=r"needs 6 GPUs; the cluster has 4. Use concurrent_trials: 2"):
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
