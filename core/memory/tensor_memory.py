"""Memory held by tensors in this process, for detecting leaks of failed runs."""

import gc

import torch

SLACK_BYTES = 2**20
"""Allowance for library caches that stay on purpose, such as position tables."""


def live_tensor_bytes(device: torch.device) -> int:
    """Bytes of all reachable tensors on a device, shared storages counted once; on CUDA the allocated bytes.

    On a CPU only tensors known to Python count; autograd frees its own with the tensor that holds the graph. The scan
    of all objects takes tens of milliseconds. Calls `release_memory` first.
    """
    release_memory(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # Test type(), not isinstance: the __class__ of a lazy proxy may trigger an import.
        if issubclass(type(thing), torch.Tensor) and thing.device.type == device.type and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def settled_level_bytes(device: torch.device) -> int:
    """`live_tensor_bytes` before any run, with the memory that the device's libraries take once and for good.

    cuBLAS keeps a workspace for the forward thread and one for the backward thread, 8 to 32 MiB each.
    """
    if device.type == "cuda":
        multiply_both_ways(device)
    return live_tensor_bytes(device)


def multiply_both_ways(device: torch.device) -> None:
    """A product of matrices in the forward thread and one in the backward thread."""
    with torch.enable_grad():
        left = torch.ones(16, 16, device=device, requires_grad=True)
        (left @ torch.ones(16, 16, device=device)).sum().backward()  # type: ignore[no-untyped-call]


def release_memory(device: torch.device) -> None:
    """Free unreferenced memory: Python's reference cycles, autograd's queue, then the allocator's cache."""
    gc.collect()
    # An aborted backward pass leaves gradients in this thread's queue until the next backward pass. A minimal one
    # clears it.
    with torch.enable_grad():
        torch.ones((), requires_grad=True).clone().backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.empty_cache()
