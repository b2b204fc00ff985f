"""Operators watched as they are called, and the storages that they return."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

__all__ = ["TorchDispatchMode", "is_innermost", "sparse_parts", "storage_key", "tree_leaves"]


def is_innermost(mode: TorchDispatchMode) -> bool:
    """Whether a mode is the last that was entered, which is the only one that may leave."""
    return _get_current_dispatch_mode() is mode


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number that two Python objects share exactly if they are the same living storage, fake ones included."""
    return int(storage._cdata)


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values of a tensor in coordinate format, as they are stored; `indices()` refuses uncoalesced ones."""
    return tensor._indices(), tensor._values()
