"""Importance of each swept setting for the loss."""

import math
from dataclasses import dataclass

import optuna
from optuna.trial import create_trial

from sweeps.analysis.comparable_losses import equal_progress
from sweeps.analysis.sweep_findings import Findings
from sweeps.search_space.optuna_space import optuna_space

MIN_TRIALS = 6
"""Trials below which the shares are chance."""


@dataclass(frozen=True)
class Importances:
    """Importance of the swept settings, and the trials behind it."""

    shares: dict[str, float]
    """Dotted path to its share of the total importance, largest first."""
    num_trials: int
    in_words: str
    """Point of training at which the losses were compared."""


def importances(findings: Findings) -> Importances | str:
    """Importance of each setting, or a sentence with the reason why it is unknown.

    Source: PED-ANOVA, Watanabe et al., arXiv:2304.10255: settings that separate the best quarter of the trials.
    """
    # Imports scikit-learn, which takes longer than writing the rest of a report.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    searched = findings.sweep.search
    space = optuna_space(searched)
    if len(space) < 2:
        return "fewer than two settings were swept."
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    progress = equal_progress(findings.records)
    for record, loss in zip(progress.records, progress.losses, strict=True):
        params = {path: record.settings[path] for path in space if path in record.settings}
        if len(params) == len(space) and all(searched[path].holds(params[path]) for path in space):
            study.add_trial(create_trial(params=params, distributions=space, value=loss))
    if len(study.trials) < MIN_TRIALS:
        count = len(study.trials)
        return f"only {count} trials have comparable losses inside the search space; {MIN_TRIALS} are needed."
    if len({trial.value for trial in study.trials}) == 1:
        return "all trials have the same loss."
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.25))
    if not all(map(math.isfinite, found.values())):
        return "the trials differ too little."
    return Importances(dict(found), len(study.trials), progress.in_words)
