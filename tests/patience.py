"""How long a test waits for other processes and threads before it takes them to hang.

These limits say nothing of speed: a slow processor, or one with other work beside, takes longer and is not wrong.
"""

import time
from collections.abc import Callable

HANGS_AFTER_S = 600.0
"""For work that takes seconds on an idle machine."""
COMMAND_HANGS_AFTER_S = 3600.0
"""For a command that takes minutes there, such as a whole sweep."""


def wait_until(holds: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Wait for an event.

    Args:
        holds: Whether it has come.
        what: Words for an event that never came.
    """
    give_up_at = time.monotonic() + HANGS_AFTER_S
    while not holds():
        assert time.monotonic() < give_up_at, what if isinstance(what, str) else what()
        time.sleep(0.02)
