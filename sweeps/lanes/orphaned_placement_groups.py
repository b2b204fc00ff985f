"""Releases CPUs that Ray still reserves for lanes whose process was killed.

Ray keeps a placement group until both its creating actor and the job, here the sweep, are gone. Train has an actor that
cleans up such groups, but it needs Ray's dashboard, and a sweep on one machine runs without it. A restarted trial would
wait forever for its own CPUs.
"""

import time
from typing import Any

import ray
from ray import tune
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

from sweeps.early_stopping.token_scheduler import KeptOutOfPickles

_LOOK_EVERY_S = 2.0


class FreesDeadLanes(KeptOutOfPickles, tune.Callback):
    """Releases the placement groups of killed lanes every few seconds."""

    def __init__(self) -> None:
        self._look_at = 0.0

    def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
        """Check if a look is due; Tune calls this ten times a second."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            free_processors_of_dead_lanes()


def free_processors_of_dead_lanes() -> int:
    """Remove the placement groups of this job's dead actors.

    Returns:
        Number of removed placement groups.
    """
    job = ray.get_runtime_context().get_job_id()
    # Ray's public function for this, `ray.util.placement_group_table`, omits the creator of a group.
    known = (
        PlacementGroupTableData.FromString(one) for one in state._connect_and_get_accessor().get_placement_group_table()
    )
    left = [one for one in known if _is_left_by_an_actor(one) and one.creator_job_id.hex() == job]
    for one in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(one.placement_group_id)))
    return len(left)


def _is_left_by_an_actor(group: PlacementGroupTableData) -> bool:
    # A group created by a driver has no actor, which Ray reports as a dead one.
    is_an_actors = group.creator_actor_id != ray.ActorID.nil().binary()
    return bool(is_an_actors and group.creator_actor_dead and group.state != PlacementGroupTableData.REMOVED)
