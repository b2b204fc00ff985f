"""How much memory tensors hold in this process: whether a run that ended badly has left something behind."""

import gc

import torch

SLACK_BYTES = 2**20
"""Caches of libraries, such as tables of positions, that stay on purpose."""


def live_tensor_bytes(device: torch.device) -> int:
    """Bytes of all tensors on a device that this process can reach, shared storages once; on CUDA what is allocated.

    On a CPU those count that Python knows: what only a graph of autograd holds goes with the tensor that has the graph.
    Looking through all objects takes some ten milliseconds.
    """
    release_memory(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # By its type: asking a proxy of another library for its class may import what it stands for.
        if issubclass(type(thing), torch.Tensor) and thing.device.type == device.type and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: Python's cycles, autograd's queue, then the allocator's cache."""
    gc.collect()
    # A backward pass that broke off leaves gradients in this thread's queue until the next one, which would begin with
    # them. The smallest there is clears it.
    with torch.enable_grad():
        torch.ones((), requires_grad=True).clone().backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.empty_cache()
