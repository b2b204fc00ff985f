"""Tune's view of the rungs."""

import math
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.early_stopping.rungs import StoppingRule
from sweeps.records.trial_records import LOSS


class KeptOutOfPickles:
    """Mixed into what Tune is given: it pickles that to resume by itself, but we resume from records alone."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class TokenScheduler(KeptOutOfPickles, FIFOScheduler):
    """Tune's view of the rungs: trials run in order, and end at a rung when they are not among the best."""

    def __init__(self, rule: StoppingRule, runs_to_end: Callable[[int], bool] = lambda _: False) -> None:
        """
        Args:
            runs_to_end: Whether the trial of this number continues whatever its loss, if it is a number.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule, self._runs_to_end = rule, runs_to_end
        self.stopped: dict[int, str] = {}
        """Trial number to the reason it was stopped."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge a result that carries a holdout loss at a rung not passed before."""
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
