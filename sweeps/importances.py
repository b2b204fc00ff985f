"""How much each swept setting mattered for the loss."""

import math

import optuna
from optuna.trial import create_trial

from sweeps.findings import Findings, finite_loss
from sweeps.settings_sampler import holds

MIN_TRIALS = 6
"""With fewer completed trials than this the shares are chance."""


def importances(findings: Findings) -> dict[str, float] | str:
    """Dotted path to its share of the total importance, largest first; or why there is none, in words.

    Source: PED-ANOVA, Watanabe et al., arXiv:2304.10255: which settings set the best quarter of the trials apart.
    """
    # Brings scikit-learn with it, which takes longer to import than the rest of a report to write.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    space = {path: distribution.to_optuna() for path, distribution in findings.sweep.search.items()}
    if len(space) < 2:
        return "fewer than two settings were swept."
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    for record in findings.completed:
        params = {path: record.settings[path] for path in space if path in record.settings}
        if len(params) == len(space) and all(holds(space[path], params[path]) for path in space):
            study.add_trial(create_trial(params=params, distributions=space, value=finite_loss(record)))
    if len(study.trials) < MIN_TRIALS:
        return f"it takes {MIN_TRIALS} completed trials inside the search space, and there are {len(study.trials)}."
    if len({trial.value for trial in study.trials}) == 1:
        return "all completed trials have the same loss."
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.25))
    if not all(map(math.isfinite, found.values())):
        return "the completed trials are too much alike."
    return dict(found)
