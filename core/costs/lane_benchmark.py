"""What processes that train side by side on one machine come to together: few with many threads, or many with few.

Measured, for it cannot be known: more threads help a large model and hinder a small one, and processes side by side
share caches and memory channels.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.settings.run_config import RunConfig

_FOR_S = 0.4
"""Each way is timed for so long, and for two steps at least."""
_ROUNDS = 2
_QUIET = 0.8
"""Share of the time in which a process that has a processor for itself is on it."""


@dataclass(frozen=True)
class Way:
    """So many processes with so many threads each."""

    processes: int
    threads: int


@dataclass(frozen=True)
class Pace:
    """What one way came to."""

    way: Way
    tokens_per_s: float | None
    """Of all processes together; None: one of them ended, as without memory."""
    was_quiet: bool
    """Whether each process had its processors for itself."""


def measure_side_by_side(
    run: RunConfig,
    ways: Sequence[Way],
    *,
    vocabulary_size: int,
    rows: int,
    device: str = "cpu",
    share_device: bool = False,
    timeout_s: float = 20.0,
) -> list[Pace]:
    """Train the shape of a run on random rows in each of these ways, for about half a second each.

    The better of two rounds counts: what disturbs makes things slower, never faster.

    Args:
        rows: Of one micro-batch.
        share_device: Each process may take its part of the device's memory and no more.
        timeout_s: A machine so busy that this passes teaches nothing; what has been measured by then is known.
    """
    most = max(way.processes for way in ways)
    shape = {
        "run": run.model_dump(mode="json"),
        "vocabulary_size": vocabulary_size,
        "rows": rows,
        "device": device,
        "memory_share": 1 / most if share_device else None,
    }
    paces: dict[Way, Pace] = {}
    with _processes(most, timeout_s) as processes:
        if not all(_tell(process, **shape) for process in processes):
            return [Pace(way, None, True) for way in ways]
        # The most processes last: where they end for want of memory, the others have been measured.
        for way in sorted(ways, key=lambda one: one.processes) * _ROUNDS:
            now = _pace(processes[: way.processes], way)
            before = paces.get(way, now)
            paces[way] = max(before, now, key=lambda pace: pace.tokens_per_s or 0.0)
    return [paces[way] for way in ways]


@contextmanager
def _processes(count: int, timeout_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    # Or torch would keep to the number of threads that it is told there.
    environment.pop("OMP_NUM_THREADS", None)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "core.costs.lane_benchmark_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the driver, which ends them.
        )
        for _ in range(count)
    ]

    def end() -> None:
        for process in started:
            process.kill()

    # A process that is stuck would be waited for without end; of one that is killed the pipe breaks.
    watchdog = threading.Timer(timeout_s, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield started
    finally:
        watchdog.cancel()
        end()
        for process in started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # What was written to a process that ended can reach nobody.
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()


def _pace(processes: Sequence[subprocess.Popen[str]], way: Way) -> Pace:
    nothing = Pace(way, None, was_quiet=True)
    if not all(_tell(process, threads=way.threads, for_s=_FOR_S) for process in processes):
        return nothing
    if not all(_hear(process) for process in processes) or not all(_tell(process, go=True) for process in processes):
        return nothing
    answers = [_hear(process) for process in processes]
    if not all(answers):
        return nothing
    assert {answer["threads"] for answer in answers} == {way.threads}, "torch has taken another number of threads"
    return Pace(
        way,
        sum(answer["tokens_per_s"] for answer in answers),
        was_quiet=min(answer["busy"] for answer in answers) >= _QUIET,
    )


def _tell(process: subprocess.Popen[str], **request: Any) -> bool:
    """Whether the process is still there to hear it."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except OSError:
        return False
    return True


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next answer; empty when the process has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
    return answer
