"""Contracts with what Ray and Tune do not promise: where each name is and what it does for us. No cluster is started.

What comes of using them together is shown in test_elastic_lanes.py and test_lane.py, on real lanes.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from private_names import check_contract, names_of, resolved

EXCEPTIONS = "ray.train.v2._internal.exceptions."
CONTROLLER = "ray.tune.execution.tune_controller.TuneController."


def takes(name: str, *arguments: object, **named: object) -> None:
    """See that a function takes these arguments."""
    inspect.signature(resolved(name)).bind(*arguments, **named)


def is_the_state_of_this_process() -> None:
    assert isinstance(resolved("ray._private.state.state"), resolved("ray._private.state.GlobalState"))


def puts_ray_on_the_machine_itself() -> None:
    constants, services = (importlib.import_module(f"ray._private.{name}") for name in ("ray_constants", "services"))
    assert constants.ENABLE_RAY_CLUSTER is True
    constants.ENABLE_RAY_CLUSTER = False
    try:
        assert services.get_node_ip_address() == "127.0.0.1"
    finally:
        constants.ENABLE_RAY_CLUSTER = True


def has_the_fields_of_a_placement_group() -> None:
    table = resolved("ray.core.generated.gcs_pb2.PlacementGroupTableData")
    group = table(placement_group_id=b"p", creator_actor_id=b"a", creator_job_id=b"j", creator_actor_dead=True)
    group.state = table.REMOVED
    again = table.FromString(group.SerializeToString())
    assert (again.placement_group_id, again.creator_actor_id, again.creator_job_id) == (b"p", b"a", b"j")
    assert again.creator_actor_dead
    assert again.state == table.REMOVED


def warns_under_its_own_name() -> None:
    module = importlib.import_module("ray.data._internal.progress")
    assert module.logger.name == "ray.data._internal.progress"


def is_an_exception_with_that_name(name: str) -> None:
    """Lanes know it by its name alone, for it may come from another process as a copy."""
    assert issubclass(resolved(name), BaseException)


def has_the_failures_by_rank() -> None:
    failure = RuntimeError("lost")
    error = resolved("ray.train.v2.api.exceptions.WorkerGroupError")("lost", {3: failure})
    assert error.worker_failures == {3: failure}


def decides_what_processes_of_tune_are_told() -> None:
    names = resolved("ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRETUNE_TOLD", "1")
        names.add("PRETUNE_TOLD")
        try:
            cls = resolved("ray.tune.execution.class_cache._ActorClassCache")().get(type("Some", (), {}))
        finally:
            names.discard("PRETUNE_TOLD")
    assert cls._default_options["runtime_env"]["env_vars"]["PRETUNE_TOLD"] == "1"


def keeps_tune_from_a_callback_of_its_own() -> None:
    from sweeps.lanes.ended_trial_cleanup import RemembersNoTrials

    base = resolved("ray.tune.progress_reporter.TrialProgressCallback")
    make = resolved("ray.tune.utils.callback._create_default_callbacks")
    ours = RemembersNoTrials()
    assert isinstance(ours, base)
    assert [one for one in make([ours], air_verbosity=None) if isinstance(one, base)] == [ours]


def of(attribute: str, kind: type) -> Callable[[Any], None]:
    """A contract with an attribute of a controller: what it is."""

    def check(controller: Any) -> None:
        found = getattr(controller, attribute)
        assert isinstance(found, kind), f"it is a {type(found).__name__}"

    return check


def counts_idle_actors(controller: Any) -> None:
    assert controller._actor_cache.num_cached_objects == 0


def ends_all_idle_actors(controller: Any) -> None:
    controller._cleanup_cached_actors(force_all=True)


def is_the_very_list(controller: Any) -> None:
    """We take trials out of it."""
    trials = controller.get_trials()
    assert isinstance(trials, list)
    assert controller.get_trials() is trials


OF_A_CONTROLLER: dict[str, Callable[[Any], object]] = {
    "ray.tune.execution.tune_controller.TuneController._actor_cache": counts_idle_actors,
    "ray.tune.execution.tune_controller.TuneController._cleanup_cached_actors": ends_all_idle_actors,
    "ray.tune.execution.tune_controller.TuneController._resources_to_pending_trials": of(
        "_resources_to_pending_trials", dict
    ),
    "ray.tune.execution.tune_controller.TuneController._running_trials": of("_running_trials", set),
    "ray.tune.execution.tune_controller.TuneController._stopped_trials": of("_stopped_trials", set),
    "ray.tune.execution.tune_controller.TuneController._trial_to_actor": of("_trial_to_actor", dict),
    "ray.tune.execution.tune_controller.TuneController._trials_to_cache": of("_trials_to_cache", set),
    "ray.tune.execution.tune_controller.TuneController.get_trials": is_the_very_list,
}
AUTOSCALING = (
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator"
)
CONTRACTS: dict[str, Callable[[], object]] = {
    "ray._private.ray_constants": puts_ray_on_the_machine_itself,
    "ray._private.state.state": is_the_state_of_this_process,
    "ray._private.state.GlobalState._connect_and_get_accessor": lambda: takes(
        "ray._private.state.GlobalState._connect_and_get_accessor", "self"
    ),
    "ray._raylet.GlobalStateAccessor.get_placement_group_table": lambda: callable(
        resolved("ray._raylet.GlobalStateAccessor.get_placement_group_table")
    ),
    "ray.core.generated.gcs_pb2.PlacementGroupTableData": has_the_fields_of_a_placement_group,
    AUTOSCALING: lambda: takes(AUTOSCALING),
    "ray.data._internal.progress": warns_under_its_own_name,
    "ray.train.v2._internal.exceptions.WorkerHealthCheckFailedError": lambda: is_an_exception_with_that_name(
        "ray.train.v2._internal.exceptions.WorkerHealthCheckFailedError"
    ),
    "ray.train.v2._internal.exceptions.WorkerHealthCheckTimeoutError": lambda: is_an_exception_with_that_name(
        "ray.train.v2._internal.exceptions.WorkerHealthCheckTimeoutError"
    ),
    "ray.train.v2.api.exceptions.WorkerGroupError": has_the_failures_by_rank,
    "ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE": decides_what_processes_of_tune_are_told,
    "ray.tune.progress_reporter.TrialProgressCallback": keeps_tune_from_a_callback_of_its_own,
}


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A real one that has no trials; with this variable it need not ask a cluster for the number of processors."""
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "16")
    from ray.tune.search import BasicVariantGenerator

    storage = resolved("ray.train._internal.storage.StorageContext")(str(tmp_path), experiment_dir_name="tune")
    return resolved(CONTROLLER.rstrip("."))(search_alg=BasicVariantGenerator(), storage=storage)


@pytest.mark.parametrize("name", [name for name in names_of("ray") if not name.startswith(CONTROLLER)])
def test_a_private_name_of_ray_is_where_and_what_we_need(name: str) -> None:
    check_contract(name, CONTRACTS)


@pytest.mark.parametrize("name", [name for name in names_of("ray") if name.startswith(CONTROLLER)])
def test_a_private_name_of_tunes_controller_is_where_and_what_we_need(name: str, controller: Any) -> None:
    check_contract(name, {known: partial(contract, controller) for known, contract in OF_A_CONTROLLER.items()})
