"""The GPUs that lanes train on, as tasks on their own nodes see them.

The driver may run on a node without a GPU, and its context would take memory of a card that a lane needs. So it never
touches CUDA: a task on each node with GPUs answers, and on a machine without Ray a process that ends at once.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from core.memory.device_facts import DeviceFacts, devices_of_this_machine, visible_devices
from data_pipeline.schema.user_errors import InputFault

_TIMEOUT_S = 120.0
"""A task starts a process and imports torch, and other jobs may hold the cards for a while."""

Cards = Callable[[], Sequence[DeviceFacts]]


class CardsError(InputFault):
    """The GPUs of a node do not answer."""


def cards_now() -> Sequence[DeviceFacts]:
    """Facts about the GPUs of the connected cluster, or of this machine; asked once per set of nodes.

    Raises:
        CardsError: GPUs are there and do not answer.
    """
    # A process without Ray is not connected; `pretune plan` spares its import.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        there = tuple(
            (node["NodeID"], node["Resources"]["GPU"])
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
        )
        return cards_on(there)
    try:
        return _here()
    except (RuntimeError, OSError) as error:
        raise CardsError(f"{error}. Look at nvidia-smi, or set resources.device: cpu") from error


@lru_cache(maxsize=4)
def cards_on(
    nodes: tuple[tuple[str, float], ...], ask: Callable[[], list[DeviceFacts]] = visible_devices
) -> tuple[DeviceFacts, ...]:
    """Facts about the cards of these nodes, each asked by a task that has all cards of its node.

    Args:
        nodes: (Ray's id, number of GPUs) of each node.
        ask: Runs in the task.

    Raises:
        CardsError: A node does not answer in time.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found: list[DeviceFacts] = []
    # A process that has asked keeps its context, so it ends with the task.
    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(ask)
    pending = {
        node: task.options(num_gpus=int(count), scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        for node, count in nodes
    }
    answers = {node: one.remote() for node, one in pending.items()}
    for node, answer in answers.items():
        try:
            of_node: list[DeviceFacts] = ray.get(answer, timeout=_TIMEOUT_S)
            found += of_node
        except RayError as error:
            ray.cancel(answer, force=True)
            raise CardsError(
                f"the GPUs of node {node[:12]} do not answer within {_TIMEOUT_S:.0f} s ({type(error).__name__}): other "
                "jobs hold them, or their driver is at fault. Look at ray status and at nvidia-smi on that node, or "
                "set resources.device: cpu"
            ) from error
    return tuple(found)


def differences(cards: Sequence[DeviceFacts]) -> str:
    """Unequal cards in words, with their numbers; empty if all are of one kind."""
    kinds = Counter(f"{one.name} {one.total_bytes / 2**30:.0f} GiB" for one in cards)
    if len(kinds) < 2:
        return ""
    return "GPUs differ: " + ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


@lru_cache(maxsize=1)
def _here() -> tuple[DeviceFacts, ...]:
    return tuple(devices_of_this_machine())
