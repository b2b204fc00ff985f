"""Collective attempts: work may fail on some workers, and all workers leave it with the same result.

A collective operation that one rank never reaches blocks all other ranks. Therefore local work runs first, then one
all-reduce of its outcome, and only then operations that need every rank.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts, OomPhase, classify
from core.memory.sticky_errors import is_sticky
from core.memory.tensor_memory import release_memory

Result = TypeVar("Result")

_FINE = 0
_SHORT_OF_MEMORY = 1
_STOPPED = 2
_FAILED = 3


class StopRequestedError(Exception):
    """The caller of a worker asks the run to stop."""


class OtherRankFailedError(RuntimeError):
    """Another worker failed and raises the cause itself."""


def attempt_together(
    work: Callable[[], Result],
    workers: Workers,
    *,
    phase: OomPhase | Callable[[], OomPhase] | None,
    bytes_in_use: Callable[[], int | None] = lambda: None,
    settle: Callable[[], None] = lambda: None,
) -> Result | OomFacts:
    """The result of the work, or the facts if any worker ran out of memory. All workers call it.

    Args:
        work: Local work; it may start collective operations only if `settle` completes them.
        phase: Phase of the run for the facts; a function is called after the failure.
        bytes_in_use: Returns the bytes that this worker holds; called after it ran out of memory.
        settle: Completes collective operations started by the work, also after a failure of the work.

    Raises:
        StopRequestedError: On all workers, if the work of any worker raised it.
        Exception: The error of the work, on the worker where it occurred; also a shortage of memory after which the
            device is unusable. No later error replaces it.
        OtherRankFailedError: On the other workers, naming the rank that failed.
    """
    results: list[Result] = []
    failure: Exception | None = None
    facts: OomFacts | None = None
    is_stopped = False
    try:
        results.append(work())
    except StopRequestedError:
        is_stopped = True
    except Exception as error:
        facts = classify(error, phase=phase() if callable(phase) else phase, rank=workers.rank)
        if facts is None or is_sticky(error):
            facts, failure = None, error
        else:
            # Call it here, while the traceback still holds the tensors of the work.
            facts = replace(facts, bytes_in_use=bytes_in_use())
    # The traceback of the exception holds every activation, so memory can be freed only after the except block.
    if facts is not None:
        release_memory(workers.device)
    if failure is not None:
        # After a failure of the device these calls fail, too; the first error is the cause.
        with suppress(Exception):
            settle()
        with suppress(Exception):
            workers.largest(_FAILED * workers.count + workers.rank)
        raise failure
    settle()
    mine = _STOPPED if is_stopped else _FINE if facts is None else _SHORT_OF_MEMORY
    # Encode outcome and rank in one number, so that one all-reduce is enough.
    worst, rank = divmod(workers.largest(mine * workers.count + workers.rank), workers.count)
    if worst == _FAILED:
        raise OtherRankFailedError(f"rank {rank} of {workers.count} failed; see the error of that rank for the cause")
    if worst == _STOPPED:
        raise StopRequestedError
    if worst == _SHORT_OF_MEMORY:
        everyone = workers.all_values(facts)
        return next(value for value in everyone if isinstance(value, OomFacts))  # The same one on every rank.
    return results[0]
