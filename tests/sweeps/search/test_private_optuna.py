"""Contracts with what Optuna does not promise: where each name is and what it does for us."""

import threading
from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from private_names import check_contract, names_of


def told() -> tuple[optuna.Study, optuna.storages.InMemoryStorage, int]:
    """A study with one finished trial, its storage, and the id of the trial there."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    trial = create_trial(state=TrialState.COMPLETE, value=1.0)
    return study, storage, storage.create_new_trial(study._study_id, template_trial=trial)


def a_study_has_its_id_in_the_storage() -> None:
    study, storage, _ = told()
    assert storage.get_study_name_from_id(study._study_id) == study.study_name
    assert [trial.value for trial in study.get_trials()] == [1.0]


def a_storage_has_a_lock() -> None:
    _, storage, _ = told()
    assert isinstance(storage._lock, type(threading.RLock()))


def a_trial_of_a_storage_is_replaced_by_its_id() -> None:
    study, storage, trial_id = told()
    other = create_trial(state=TrialState.COMPLETE, value=2.0)
    other.number, other._trial_id = storage._get_trial(trial_id).number, trial_id
    storage._set_trial(trial_id, other)
    (found,) = study.get_trials()
    assert found.value == 2.0
    assert found._trial_id == trial_id == storage.get_trial(trial_id)._trial_id


CONTRACTS: dict[str, Callable[[], object]] = {
    "optuna.storages.InMemoryStorage._get_trial": a_trial_of_a_storage_is_replaced_by_its_id,
    "optuna.storages.InMemoryStorage._lock": a_storage_has_a_lock,
    "optuna.storages.InMemoryStorage._set_trial": a_trial_of_a_storage_is_replaced_by_its_id,
    "optuna.study.Study._study_id": a_study_has_its_id_in_the_storage,
    "optuna.trial.FrozenTrial._trial_id": a_trial_of_a_storage_is_replaced_by_its_id,
}


@pytest.mark.parametrize("name", names_of("optuna"))
def test_a_private_name_of_optuna_is_where_and_what_we_need(name: str) -> None:
    check_contract(name, CONTRACTS)
