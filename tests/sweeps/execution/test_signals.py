"""Signals that end a sweep, and those that it ignores."""

import os
import signal
from collections.abc import Iterator

import pytest

from sweeps.execution.signals import terminated_like_interrupted, uninterrupted

HEARD = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *HEARD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HEARD)
def test_signal_interrupts_once_and_those_after_it_do_not_end_the_process(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        send(number)
    # The terminal sends one, and its shell another.
    for again in HEARD:
        send(again)


def test_hangup_that_nohup_ignores_does_not_interrupt() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminated_like_interrupted():
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_results_are_written_whatever_signal_comes_and_the_handlers_return() -> None:
    before = [signal.getsignal(number) for number in HEARD]
    with uninterrupted():
        for number in (signal.SIGINT, *HEARD):
            send(number)
    with terminated_like_interrupted():
        pass
    assert [signal.getsignal(number) for number in HEARD] == before
