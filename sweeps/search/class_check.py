"""The user's class of a sweep, checked before anything is trained."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from core.costs.parameter_counts import parameter_counts
from core.model_check.class_checks import Checked, ClassCheck
from core.settings.run_config import RunConfig
from core.user_code.code_places import UserCodeError
from sweeps.search.initial_points import middle_run
from sweeps.search_space.distribution import settings_in_words
from sweeps.settings.setting_paths import ARGUMENTS
from sweeps.settings.sweep_config import SweepConfig

_MOST_CORNERS = 8


def class_results(sweep: SweepConfig, vocabulary_size: int) -> Iterator[Checked]:
    """The checks of the class of a sweep, with settings from the middle of its search space."""
    check = ClassCheck(
        checked_run(sweep, vocabulary_size), vocabulary_size, confines_attention=sweep.packing.confines_attention
    )
    yield from check.results()


def refuse_faulty_class(sweep: SweepConfig, vocabulary_size: int, *, say: Callable[[str], None]) -> None:
    """Check the class of a sweep, if it has one; a line for each fault that leaves training possible.

    Raises:
        UserCodeError: It breaks the contract. One line for each fault, with its place in the user's file.
    """
    if sweep.model.class_ is None:
        return
    faults = []
    for result in class_results(sweep, vocabulary_size):
        if result.fault is not None and result.is_essential:
            faults.append(result.fault)
        elif result.fault is not None:
            say(f"model    {result.fault}")
        elif result.name == "memory" and result.note.startswith("measured"):
            say(f"model    its memory is {result.note}")
    for settings in sweep.start_with:
        fault = class_fault(sweep.run_config(settings), vocabulary_size)
        if fault is not None:
            faults.append(f"{fault} (start_with: {settings_in_words(settings)})")
    if faults:
        raise UserCodeError("\n".join(dict.fromkeys(faults)))
    for settings in _corners(sweep):
        fault = class_fault(sweep.run_config(settings), vocabulary_size)
        if fault is not None:
            say(f"search   {settings_in_words(settings)} is never launched: {fault}")


def checked_run(sweep: SweepConfig, vocabulary_size: int) -> RunConfig:
    """The run in the middle of the search space, or the first corner with which the class can be built."""
    middle = middle_run(sweep)
    if class_fault(middle, vocabulary_size) is not None:
        for settings in _corners(sweep):
            run = sweep.run_config(settings)
            if class_fault(run, vocabulary_size) is None:
                return run
    return middle


def class_fault(run: RunConfig, vocabulary_size: int) -> str | None:
    """The reason why the class of a run cannot be built with its arguments; None if it can, or for a model of ours."""
    if run.model.class_ is None:
        return None
    try:
        parameter_counts(run, vocabulary_size)
    except UserCodeError as error:
        return str(error)
    return None


def _corners(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Settings with the extreme values of the swept arguments, a few of many."""
    swept = {path: one.extremes() for path, one in sweep.search.items() if path.startswith(ARGUMENTS)}
    if swept:
        combinations = (dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values()))
        yield from itertools.islice(combinations, _MOST_CORNERS)
