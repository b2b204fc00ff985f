"""What the garbage collector looks through while trials run."""

import gc
import weakref

import pytest

from sweeps.execution.tune_run import old_objects_left_alone


class _Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_only_what_is_made_in_the_block_is_looked_through_and_afterwards_everything_again() -> None:
    before = weakref.ref(_Ring())

    def interrupted() -> None:
        with old_objects_left_alone():
            within = weakref.ref(_Ring())
            looked_through = len(gc.get_objects())
            gc.collect()
            assert within() is None
            assert before() is not None
            assert looked_through < gc.get_freeze_count() / 10
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert before() is None
