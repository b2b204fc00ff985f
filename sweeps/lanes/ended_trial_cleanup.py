"""Trials that have ended need not stay with Tune: what a sweep wants to know of them stands in its records."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from sweeps.early_stopping.token_scheduler import KeptOutOfPickles
from sweeps.lanes.elastic_lanes import LetsIdleLanesGo

_ENDED_TRIALS_KEPT = 50


class ForgetsEndedTrials(LetsIdleLanesGo):
    """A scheduler that has Tune keep the last trials, and not all of them to the end.

    Tune holds each one's settings many times over, and looks through all trials at each step: a sweep of thousands
    would grow with every one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Forget, then choose."""
        trials: list[Trial] = tune_controller.get_trials()
        ended = [trial for trial in trials if trial.status == Trial.TERMINATED]
        if len(ended) > _ENDED_TRIALS_KEPT:
            trials[:] = [trial for trial in trials if trial.status != Trial.TERMINATED]
            tune_controller._stopped_trials.difference_update(ended)
            tune_controller._trials_to_cache.difference_update(ended)
        return super().choose_trial_to_run(tune_controller)


class RemembersNoTrials(KeptOutOfPickles, TrialProgressCallback):
    """Stands where Tune would put a callback of its own, which is told to print nothing and keeps all trials."""

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Nothing to print."""

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Nothing to print."""

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        """Nothing to print; the ledger has it."""
