"""Tune's view of the rungs."""

import math
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.early_stopping.rungs import StoppingRule
from sweeps.records.trial_records import LOSS


class KeptOutOfPickles:
    """Mixin for objects that Tune pickles for its own resumption; pretune resumes from records only."""

    def __getstate__(self) -> dict[str, Any]:
        """An empty state."""
        return {}


class TokenScheduler(KeptOutOfPickles, FIFOScheduler):
    """Tune's view of the rungs: trials run in order and stop at a rung if they are not among the best."""

    def __init__(self, rule: StoppingRule, runs_to_end: Callable[[int], bool] = lambda _: False) -> None:
        """
        Args:
            runs_to_end: Whether the trial of this number continues with any finite loss.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule, self._runs_to_end = rule, runs_to_end
        self.stopped: dict[int, str] = {}
        """Trial number to the reason of its stop."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge a result with a holdout loss at a new rung; other results continue."""
        number = trial.config["number"]
        if LOSS not in result or result.get("done"):
            return str(TrialScheduler.CONTINUE)
        rung = self._rule.reached(number, result["tokens"])
        if rung is None:
            return str(TrialScheduler.CONTINUE)
        decision = self._rule.judge(number, rung, result[LOSS])
        if decision.continues or (math.isfinite(result[LOSS]) and self._runs_to_end(number)):
            return str(TrialScheduler.CONTINUE)
        self.stopped[number] = decision.reason
        return str(TrialScheduler.STOP)
