"""Searches of other tools on a table of known losses, by their own code.

A trial that stops early has spent its tokens up to there, without a cooldown: they judge it by the loss of that moment.
"""

import math
from typing import Any

import optuna
from loss_table import LossTable, Setting
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

LOSS = "loss"


def ray_tune(table: LossTable, tokens: int, seed: int) -> tuple[Setting, int]:
    """Ray Tune as documented: OptunaSearch with ASHAScheduler. Settings of the best trial, and tokens."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = OptunaSearch(
        {path: optuna.distributions.CategoricalDistribution(axis) for path, axis in table.axes.items()},
        metric=LOSS,
        mode="min",
        seed=seed,
    )
    scheduler = ASHAScheduler(
        time_attr="tokens",
        metric=LOSS,
        mode="min",
        max_t=table.full,
        grace_period=table.lengths[0],
        reduction_factor=max(2, round((table.full / table.lengths[0]) ** (1 / max(len(table.lengths) - 1, 1)))),
    )
    spent, best = 0, (math.inf, table.settings[0])
    number = 0
    while spent < tokens:
        number += 1
        values = search.suggest(str(number))
        setting = table.setting_of(values)
        if setting not in table.settings_known:
            search.on_trial_complete(str(number), error=True)
            continue
        trial = Trial("table", stub=True, trial_id=str(number))
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        reached = 0
        for length in table.lengths:
            loss = table.raw_loss(setting, length) if length < table.full else table.loss(setting, length)
            result = {LOSS: loss, "tokens": length, "training_iteration": length}
            spent, reached = spent + length - reached, length
            if length == table.full:
                best = min(best, (loss, setting))
            search.on_trial_result(str(number), result)
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:  # type: ignore[arg-type]
                break
        search.on_trial_complete(str(number), result)
    return best[1], spent


def optuna_hyperband(table: LossTable, tokens: int, seed: int) -> tuple[Setting, int]:
    """Optuna's TPE with its HyperbandPruner. Settings of the best trial that was not pruned, and tokens."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=len(table.lengths), reduction_factor=3)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    spent, best = 0, (math.inf, table.settings[0])
    space: dict[str, Any] = {
        path: optuna.distributions.CategoricalDistribution(axis) for path, axis in table.axes.items()
    }
    while spent < tokens:
        trial = study.ask(space)
        setting = table.setting_of(trial.params)
        if setting not in table.settings_known:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        reached, state, loss = 0, optuna.trial.TrialState.COMPLETE, math.inf
        for step, length in enumerate(table.lengths, start=1):
            loss = table.raw_loss(setting, length) if length < table.full else table.loss(setting, length)
            spent, reached = spent + length - reached, length
            trial.report(loss, step)
            if length < table.full and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        if state is optuna.trial.TrialState.COMPLETE:
            best = min(best, (loss, setting))
        study.tell(trial, loss if state is optuna.trial.TrialState.COMPLETE else None, state=state)
    return best[1], spent
