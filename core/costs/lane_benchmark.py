"""Measure the total training speed of parallel processes on one machine: few with many threads, or many with few.

It cannot be predicted: more threads help a large model and slow a small one, and parallel processes share caches and
memory channels.
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

from core.settings.model_config import ModelConfig
from core.settings.run_config import RunConfig
from core.user_code.permitted_code import permitted_class

_FOR_S = 0.4
"""Duration of each measurement in seconds; at least two steps are timed."""
_ROUNDS = 2
_QUIET = 0.8
"""Minimum share of the time that a process runs if no other process uses its core."""


@dataclass(frozen=True)
class Way:
    """A number of processes, and the number of threads of each."""

    processes: int
    threads: int


@dataclass(frozen=True)
class Pace:
    """Measured speed of one way."""

    way: Way
    tokens_per_s: float | None
    """Tokens per second of all processes together. None: a process ended, for example without memory."""
    was_quiet: bool
    """True if no other program used the cores of these processes."""


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
    """Speed of each way: trains the shape of a run on random rows, about half a second per way and round.

    The best round counts, because disturbances only slow a measurement.

    Args:
        ways: Numbers of processes and threads to measure.
        rows: Micro-batch size in rows.
        share_device: Limit each process to an equal share of the memory of the device.
        timeout_s: All processes are killed after this time; ways not measured by then have no speed.
    """
    most = max(way.processes for way in ways)
    shape = {
        "run": run.model_dump(mode="json"),
        "vocabulary_size": vocabulary_size,
        "rows": rows,
        "device": device,
        "memory_share": 1 / most if share_device else None,
        "code": None if run.model.class_ is None else _code_of(run.model),
    }
    paces: dict[Way, Pace] = {}
    with _processes(most, timeout_s) as processes:
        if not all(_tell(process, **shape) for process in processes):
            return [Pace(way, None, True) for way in ways]
        # Measure the most processes last: if they run out of memory, all other ways are already measured.
        for way in sorted(ways, key=lambda one: one.processes) * _ROUNDS:
            now = _pace(processes[: way.processes], way)
            before = paces.get(way, now)
            paces[way] = max(before, now, key=lambda pace: pace.tokens_per_s or 0.0)
    return [paces[way] for way in ways]


def _code_of(model: ModelConfig) -> dict[str, Any]:
    """Source of the user's class, which this process may build."""
    assert model.class_ is not None
    return permitted_class(model.class_, model.class_digest)[0].as_json()


@contextmanager
def _processes(count: int, timeout_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    # torch would otherwise use the number of threads in this variable.
    environment.pop("OMP_NUM_THREADS", None)
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "core.costs.lane_benchmark_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only the driver, which kills them.
        )
        for _ in range(count)
    ]

    def end() -> None:
        for process in started:
            process.kill()

    # Waiting for a hanging process would never end; killing it breaks its pipe.
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
                # Data in the pipe of a process that ended cannot be flushed.
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
    """Send a request; False if the process has ended."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except OSError:
        return False
    return True


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next answer; empty if the process has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
    return answer
