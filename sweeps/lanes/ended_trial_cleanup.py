"""Removes ended trials from Tune's memory: the sweep's own records hold everything about them."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from sweeps.early_stopping.token_scheduler import KeptOutOfPickles
from sweeps.lanes.elastic_lanes import LetsIdleLanesGo

_ENDED_TRIALS_KEPT = 50


class ForgetsEndedTrials(LetsIdleLanesGo):
    """A scheduler that limits the number of ended trials in Tune's memory.

    Tune stores the settings of each trial many times and scans all trials at each step, so a sweep of thousands of
    trials would become slower with each one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Forget surplus ended trials, then choose."""
        trials: list[Trial] = tune_controller.get_trials()
        ended = [trial for trial in trials if trial.status == Trial.TERMINATED]
        if len(ended) > _ENDED_TRIALS_KEPT:
            trials[:] = [trial for trial in trials if trial.status != Trial.TERMINATED]
            tune_controller._stopped_trials.difference_update(ended)
            tune_controller._trials_to_cache.difference_update(ended)
        return super().choose_trial_to_run(tune_controller)


class RemembersNoTrials(KeptOutOfPickles, TrialProgressCallback):
    """Replaces Tune's default progress callback, which keeps all trials in memory even when silent."""

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Print nothing."""

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        """Print nothing; the ledger records the error."""
