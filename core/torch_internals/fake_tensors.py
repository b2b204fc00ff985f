"""Fake tensors: shapes, strides and number formats without values or memory."""

from contextlib import AbstractContextManager

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["FakeTensor", "all_fake", "device_query"]

device_query = torch.ops.prim.device.default
"""The operator by which C++ asks for the device of a fake tensor; `tensor.device` answers the same at once."""


def all_fake() -> AbstractContextManager[object]:
    """Tensors that are made in the block are fake, and operators on them compute shapes alone."""
    return FakeTensorMode()
