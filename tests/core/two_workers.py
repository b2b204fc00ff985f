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

from core.workers import Workers

_CONTEXT = multiprocessing.get_context("spawn")
_GROUPS: dict[int, "_Group"] = {}


def on_workers(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """function(workers, *args) on each of `count` workers; their results by rank."""
    if count not in _GROUPS:
        _GROUPS[count] = _Group(count)
    answers = _GROUPS[count].call(function, args)
    failures = [f"rank {rank}:\n{answer}" for rank, (is_fine, answer) in enumerate(answers) if not is_fine]
    if failures:
        _GROUPS.pop(count).close()  # its ranks may stand at different collective operations
    assert not failures, "\n".join(failures)
    return [answer for _, answer in answers]


class _Group:
    def __init__(self, count: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        rendezvous = Path(self.folder.name) / "rendezvous"
        pipes = [_CONTEXT.Pipe() for _ in range(count)]
        self.parents = [parent for parent, _ in pipes]
        self.processes = [
            _CONTEXT.Process(target=_serve, args=(rank, count, rendezvous, pipes[rank][1]), daemon=True)
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
            has_answered = parent.poll(120)
            answers.append(parent.recv() if has_answered else (False, f"rank {rank} gave no answer in 120 s"))
        return answers

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def _serve(rank: int, count: int, rendezvous: Path, calls: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    while True:
        function, args = calls.recv()
        try:
            calls.send((True, function(Workers(rank=rank, count=count), *args)))
        except Exception:
            calls.send((False, traceback.format_exc()))
