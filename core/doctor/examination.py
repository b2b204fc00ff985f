"""All checks of one device, within a time."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from core.doctor.all_reduce import all_reduces_of
from core.doctor.check import Check
from core.doctor.device_rates import rates_of
from core.doctor.memory_claims import FAMILIES, prediction_holds, shortages_are_survived, sizes_are_refused
from core.doctor.number_claims import losses_agree, speeds_of, steps_wait_rarely
from core.memory.tensor_memory import release_memory

_OF_A_FAMILY: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    f"predicted memory: {family}": partial(prediction_holds, family) for family in FAMILIES
}
_CHECKS: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    "rates": rates_of,
    "all-reduces": all_reduces_of,
    "waiting calls": steps_wait_rarely,
    "shortages": shortages_are_survived,
    "largest micro-batch": sizes_are_refused,
    "losses": losses_agree,
    "speeds": speeds_of,
    **_OF_A_FAMILY,
}


def examine(device: torch.device, *, seconds: float, say: Callable[[str], None] = lambda _: None) -> list[Check]:
    """The verdicts on a device. A check that fails with an error says which; checks after the time are not run.

    Args:
        seconds: Time in which checks may begin; the one that runs then ends.
        say: Receives the name of each check when it begins.
    """
    ends_at = time.monotonic() + seconds
    found: list[Check] = []
    for name, checks in _CHECKS.items():
        say(name)
        if time.monotonic() >= ends_at:
            found.append(Check(name, "not run", "the time was over; give more --minutes"))
            continue
        try:
            found += checks(device)
        except Exception as error:  # A machine at fault raises anything, and the other checks are wanted all the more.
            first = str(error).strip().splitlines() or [""]
            found.append(Check(name, "fail", f"{type(error).__name__}: {first[0][:200]}"))
        release_memory(device)
    return found
