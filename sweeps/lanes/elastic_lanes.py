"""Lanes that come and go with the nodes of the cluster.

Tune's own limit of trials side by side is fixed when it starts. Here the searcher holds back while the cluster, as it
is now, holds no further lane, and idle lanes go where nodes have left: the trial that lost its workers with a node
waits for just those processors.

Where processors are few, lanes also start one after another: what starts a lane is some seven processes that import
torch and Ray, so two that start at once on two cores are both ready only when the second would have been, and until
then nothing is trained. The next one starts when those at work have worked for as long as they took to start, so that a
sweep that is over by then does not pay for it (the rule of whoever hires skis not knowing for how many days).
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
"""Processors that the start of a lane keeps busy."""

Nodes = Callable[[], Iterable[Mapping[str, float]]]
"""Resources of each node that is alive."""


def nodes_now() -> Iterable[Mapping[str, float]]:
    """Resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


class LaneCount:
    """How many lanes the cluster holds now."""

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
            say: Told in a line when the number changes.
        """
        self._plan, self._nodes, self._say, self._look_every_s = plan, nodes, say, look_every_s
        self._count = plan.count
        self._starting = 1
        self._look_at = 0.0

    def now(self) -> int:
        """The number, at most some seconds old; 1 at least, for a trial may wait for a node."""
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
        """The number while that number is at work: not all the others start at once.

        Args:
            have_worked: They have worked for as long as they took to start.
        """
        may_start = self._starting if self._starting > 1 or have_worked or not num_at_work else 0
        return min(self.now(), num_at_work + may_start)


class HoldsBack(KeptOutOfPickles, Searcher):
    """A searcher that proposes nothing while all lanes have a trial."""

    def __init__(self, searcher: Searcher, lanes: LaneCount, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(metric=None, mode=None)
        self._searcher, self._lanes, self._clock = searcher, lanes, clock
        self._asked_at: float | None = None
        """When the last lane was asked to start."""
        self._next_at = 0.0
        """When the lanes at work have paid for their start."""
        self._running: set[str] = set()
        self._at_work: set[str] = set()
        self._num_started = 0

    def suggest(self, trial_id: str) -> Any:
        """What the searcher says; None, ask again, while there is no lane for it."""
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
        """Passed on; its lane has started."""
        self._at_work.add(trial_id)
        self._note_start()
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passed on; its lane is free."""
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
        """Nothing to save: the trial records say everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a new searcher reads the trial records."""


class LetsIdleLanesGo(TokenScheduler):
    """A scheduler that ends idle lanes while there are more, busy ones included, than the cluster holds.

    And one that lets lanes start in peace. Tune would give a lane that becomes free to the trial that another lane is
    starting for, end that half-started lane, and start a new one for the next trial: where trials are shorter than the
    start of a lane, for ever.
    """

    lanes: LaneCount | None = None
    """None: the number never changes."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Look; which trial is next is clear: Tune stages what is pending in its order."""
        # Tune keeps a lane warm for the next trial, which is right until another trial waits for its processors.
        num_idle = tune_controller._actor_cache.num_cached_objects
        if self.lanes and num_idle and num_idle + len(tune_controller._running_trials) > self.lanes.now():
            tune_controller._cleanup_cached_actors(force_all=True)
        for pending in tune_controller._resources_to_pending_trials.values():
            pending.difference_update([trial for trial in pending if trial in tune_controller._trial_to_actor])
        return None
