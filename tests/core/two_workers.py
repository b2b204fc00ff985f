"""Real processes with a real gloo process group, for tests of what workers do together.

A group of each size starts once and serves all tests: importing torch takes longer than most of them.
"""

import atexit
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from core.distributed.workers import Workers
from patience import HANGS_AFTER_S

_CONTEXT = multiprocessing.get_context("spawn")
_GROUPS: dict[tuple[int, float], "_Group"] = {}


def on_workers(count: int, function: Callable[..., Any], *args: Any, deadline_s: float = HANGS_AFTER_S) -> list[Any]:
    """function(workers, *args) on each of `count` workers; their results by rank.

    Args:
        deadline_s: How long they wait for one another.
    """
    key = (count, deadline_s)
    if key not in _GROUPS:
        _GROUPS[key] = _Group(count, deadline_s)
    answers = _GROUPS[key].call(function, args)
    failures = [f"rank {rank}:\n{answer}" for rank, (is_fine, answer) in enumerate(answers) if not is_fine]
    if failures:
        _GROUPS.pop(key).close()  # its ranks may stand at different collective operations
    assert not failures, "\n".join(failures)
    return [answer for _, answer in answers]


def close_group(count: int, *, deadline_s: float) -> None:
    """End a group that a test has broken."""
    _GROUPS.pop((count, deadline_s)).close()


class _Group:
    def __init__(self, count: int, deadline_s: float) -> None:
        self.folder = tempfile.TemporaryDirectory()
        rendezvous = Path(self.folder.name) / "rendezvous"
        pipes = [_CONTEXT.Pipe() for _ in range(count)]
        self.parents = [parent for parent, _ in pipes]
        self.processes = [
            _CONTEXT.Process(target=_serve, args=(rank, count, rendezvous, pipes[rank][1], deadline_s), daemon=True)
            for rank in range(count)
        ]
        for process in self.processes:
            process.start()
        atexit.register(self.close)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[tuple[bool, Any]]:
        for parent in self.parents:
            parent.send((function, args))
        answers = []
        for rank, parent in enumerate(self.parents):
            has_answered = parent.poll(2 * HANGS_AFTER_S)
            answers.append(parent.recv() if has_answered else (False, f"rank {rank} gave no answer"))
        return answers

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def _serve(rank: int, count: int, rendezvous: Path, calls: Connection, deadline_s: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count, timeout=timedelta(seconds=deadline_s)
    )
    while True:
        function, args = calls.recv()
        try:
            calls.send((True, function(Workers(rank=rank, count=count), *args)))
        except Exception:
            calls.send((False, traceback.format_exc()))
