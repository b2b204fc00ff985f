"""Everything that `pretune doctor` finds on this machine, or on the cluster of RAY_ADDRESS."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import ray
import torch
from rich.console import Console
from rich.table import Table

from core.doctor.check import Check
from core.doctor.examination import examine
from data_pipeline.files.whole_files import write_atomically
from sweeps.doctor.six_trials import six_trials
from sweeps.lanes.cards import CardsError, cards_now, differences
from sweeps.lanes.elastic_lanes import nodes_now
from sweeps.lanes.hardware import hardware
from sweeps.lanes.ray_session import connect, has_cluster

_SHORTEST_SWEEP_S = 60.0
"""A sweep begins only if as much time is left: it starts Ray and its lanes."""


def report_on_machine(*, minutes: float, say: Callable[[str], None]) -> list[Check]:
    """The verdicts on hardware, on one device and on a sweep.

    Args:
        minutes: Time in which checks may begin.
        say: Receives the name of each check when it begins.
    """
    ends_at = time.monotonic() + 60 * minutes
    say("hardware")
    if has_cluster():
        connect()
    found = _hardware()
    left_s = max(0.0, ends_at - time.monotonic() - (_SHORTEST_SWEEP_S if minutes > 2 else 0.0))
    found += _on_a_node(left_s) if has_cluster() else examine(_device(), seconds=left_s, say=say)
    if time.monotonic() + _SHORTEST_SWEEP_S < ends_at:
        say("sweep of six trials")
        found.append(six_trials())
    else:
        found.append(Check("sweep of 6 trials", "not run", "the time was over; give more --minutes"))
    return found


def print_report(found: list[Check], console: Console) -> None:
    """The table of verdicts."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "verdict", "found"):
        table.add_column(column, overflow="fold")
    for check in found:
        table.add_row(check.subject, check.verdict, check.words)
    console.print(table)
    counts = {verdict: sum(check.verdict == verdict for check in found) for verdict in _VERDICTS}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def write_report(found: list[Check], file: Path) -> None:
    """The verdicts as JSON."""
    write_atomically(file, json.dumps({"checks": [asdict(check) for check in found]}, indent=1) + "\n")


_VERDICTS = ("pass", "fail", "not applicable", "not run")


def _hardware() -> list[Check]:
    try:
        cards = cards_now()
        nodes = list(nodes_now()) if ray.is_initialized() else []
        found = [Check("hardware", "pass", "; ".join(f"{name}: {words}" for name, words in hardware(nodes).items()))]
    except CardsError as fault:
        return [Check("hardware", "fail", str(fault))]
    if not cards:
        return [*found, Check("equal GPUs", "not applicable", "no GPU")]
    words = differences(cards) or f"{len(cards)} of one kind"
    return [*found, Check("equal GPUs", "fail" if differences(cards) else "pass", words)]


def _on_a_node(seconds: float) -> list[Check]:
    """The checks of one device in a task: the driver's node may have no GPU."""
    has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes_now())
    task = ray.remote(num_cpus=1, num_gpus=int(has_gpu), max_retries=0, max_calls=1)(_examine_here)
    found: list[Check] = ray.get(task.remote(seconds))
    return found


def _examine_here(seconds: float) -> list[Check]:
    return examine(_device(), seconds=seconds)


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
