"""Work that may run out of memory on some workers and not on others: all of them leave it with the same answer.

A collective operation that one rank never reaches hangs the rest. So local work comes first, then one all-reduce of how
it went, and only then anything that needs every rank.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts, OomPhase, classify
from core.memory.tensor_memory import release_memory

Result = TypeVar("Result")

_FINE = 0
_SHORT_OF_MEMORY = 1
_STOPPED = 2
_FAILED = 3


class StopRequestedError(Exception):
    """The caller wants the run to end, as this worker has heard, or another."""


def attempt_together(
    work: Callable[[], Result],
    workers: Workers,
    *,
    phase: OomPhase | Callable[[], OomPhase] | None,
    bytes_in_use: Callable[[], int | None] = lambda: None,
    settle: Callable[[], None] = lambda: None,
) -> Result | OomFacts:
    """What the work gives, or what is known about the memory shortage, if any worker had one.

    Args:
        work: Local work; it starts no collective operation unless `settle` ends it.
        phase: Where in the run, for the facts; a function says it when it is known only then.
        bytes_in_use: What this worker holds, asked where its memory has run out.
        settle: Brings collective operations that the work had started to their end, also when it broke off in between.

    Raises:
        StopRequestedError: On all workers, if the work of any raised it.
        Exception: The work's own error on the worker that had it.
        RuntimeError: On the other workers, naming that one.
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
        if facts is None:
            failure = error
        else:
            # Asked in here, where the traceback still holds what the work held.
            facts = replace(facts, bytes_in_use=bytes_in_use())
    # The traceback of an exception holds every activation, so memory comes back only out here, after the except block.
    if facts is not None:
        release_memory(workers.device)
    settle()
    mine = _FAILED if failure is not None else _STOPPED if is_stopped else _FINE if facts is None else _SHORT_OF_MEMORY
    # The rank rides along, so that one number says what and who.
    worst, rank = divmod(workers.largest(mine * workers.count + workers.rank), workers.count)
    if failure is not None:
        raise failure
    if worst == _FAILED:
        raise RuntimeError(f"rank {rank} of {workers.count} failed; its own error says why")
    if worst == _STOPPED:
        raise StopRequestedError
    if worst == _SHORT_OF_MEMORY:
        everyone = workers.all_values(facts)
        return next(value for value in everyone if isinstance(value, OomFacts))  # the same one on every rank
    return results[0]
