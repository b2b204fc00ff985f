"""Observations of a run: figures that nothing depends on, so no failure to read one may end the run."""

import logging
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

_LOG = logging.getLogger("pretune.observations")
_TOLD: set[str] = set()


def observed(name: str, probe: Callable[[], Value], *, otherwise: Value) -> Value:
    """The value of a probe; `otherwise` if it fails, and a line in the log for the first failure of each name.

    Libraries that read devices raise types of their own (NVML under MIG, drivers without permission), so every
    exception counts.
    """
    try:
        return probe()
    except Exception as error:
        if name not in _TOLD:
            _TOLD.add(name)
            _LOG.warning("%s cannot be read and is left out: %s: %s", name, type(error).__name__, error)
        return otherwise
