"""Elastic lanes: their number follows the nodes of the cluster.

Tune fixes its limit of concurrent trials at the start. Here the searcher holds back while the current cluster has no
room for another lane. Idle lanes end after nodes have left, because a trial that lost its workers needs their CPUs.

On few CPUs lanes also start one after another. The start of a lane is some seven processes that import torch and Ray.
Two simultaneous starts on two cores would both finish as late as the second of two sequential ones, and nothing would
train until then. The next lane starts after the running ones have worked for as long as they took to start, so a sweep
that ends earlier does not pay for it (the break-even rule of the ski rental problem).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from sweeps.early_stopping.token_scheduler import KeptOutOfPickles, TokenScheduler
from sweeps.lanes.lane_planning import LanePlan

_LOOK_EVERY_S = 2.0
_CORES_OF_A_START = 4
"""CPUs that the start of a lane keeps busy."""

Nodes = Callable[[], Iterable[Mapping[str, float]]]
"""Returns the resources of each live node."""


def nodes_now() -> Iterable[Mapping[str, float]]:
    """Resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


class LaneCount:
    """The number of lanes that the current cluster holds."""

    def __init__(
        self,
        plan: LanePlan,
        *,
        say: Callable[[str], None],
        nodes: Nodes = nodes_now,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """
        Args:
            say: Called with a line when the number changes.
        """
        self._plan, self._nodes, self._say, self._look_every_s = plan, nodes, say, look_every_s
        self._count = plan.count
        self._starting = 1
        self._look_at = 0.0

    def now(self) -> int:
        """The number, at most some seconds old; at least 1, because a trial may wait for a node."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._look_every_s
            nodes = list(self._nodes())
            self._starting = max(1, int(sum(node.get("CPU", 0.0) for node in nodes)) // _CORES_OF_A_START)
            count = max(1, self._plan.held_by(nodes))
            if count != self._count:
                what = "joined" if count > self._count else "left"
                self._say(f"lanes    {self._count} -> {count} at a time: nodes have {what} the cluster")
                self._count = count
        return self._count

    def while_starting(self, num_at_work: int, *, have_worked: bool) -> int:
        """The number while lanes start: limits simultaneous starts.

        Args:
            num_at_work: Lanes that have started.
            have_worked: They have worked for as long as they took to start.
        """
        may_start = self._starting if self._starting > 1 or have_worked or not num_at_work else 0
        return min(self.now(), num_at_work + may_start)


class HoldsBack(KeptOutOfPickles, Searcher):
    """A searcher that proposes nothing while every lane has a trial."""

    def __init__(self, searcher: Searcher, lanes: LaneCount, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(metric=None, mode=None)
        self._searcher, self._lanes, self._clock = searcher, lanes, clock
        self._asked_at: float | None = None
        """Time of the last request to start a lane."""
        self._next_at = 0.0
        """Time at which the running lanes have worked for as long as they took to start."""
        self._running: set[str] = set()
        self._at_work: set[str] = set()
        self._num_started = 0

    def suggest(self, trial_id: str) -> Any:
        """The searcher's proposal; None (ask again) while no lane is free."""
        have_worked = self._clock() >= self._next_at
        if len(self._running) >= self._lanes.while_starting(self._num_started, have_worked=have_worked):
            return None
        config = self._searcher.suggest(trial_id)
        if isinstance(config, dict):
            self._running.add(trial_id)
            if len(self._running) > self._num_started:
                self._asked_at = self._clock()
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note that the trial's lane has started, and forward the result."""
        self._at_work.add(trial_id)
        self._note_start()
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that the trial's lane is free, and forward the end."""
        self._at_work.add(trial_id)
        self._note_start()
        self._running.discard(trial_id)
        self._at_work.discard(trial_id)
        self._searcher.on_trial_complete(trial_id, result, error)

    def _note_start(self) -> None:
        if len(self._at_work) > self._num_started:
            self._num_started = len(self._at_work)
            now = self._clock()
            self._next_at = now + (now - self._asked_at if self._asked_at is not None else 0.0)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the trial records hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a new searcher reads the trial records."""


class LetsIdleLanesGo(TokenScheduler):
    """A scheduler that ends idle lanes while there are more lanes than the cluster holds.

    It also protects starting lanes. Tune would give a free lane to a trial for which another lane is starting, end that
    half-started lane, and start a new one for the next trial. With trials shorter than the start of a lane this would
    never stop.
    """

    lanes: LaneCount | None = None
    """None: the number of lanes is fixed."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """End surplus lanes; return None, because Tune itself starts pending trials in order."""
        # Tune keeps an idle lane warm for the next trial, which is wrong once another trial waits for its CPUs.
        num_idle = tune_controller._actor_cache.num_cached_objects
        if self.lanes and num_idle and num_idle + len(tune_controller._running_trials) > self.lanes.now():
            tune_controller._cleanup_cached_actors(force_all=True)
        for pending in tune_controller._resources_to_pending_trials.values():
            pending.difference_update([trial for trial in pending if trial in tune_controller._trial_to_actor])
        return None
