"""Fake tensors: shapes, strides and number formats without values or memory."""

from contextlib import AbstractContextManager

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["FakeTensor", "all_fake"]


def all_fake() -> AbstractContextManager[object]:
    """Tensors that are made in the block are fake, and operators on them compute shapes alone."""
    return FakeTensorMode()
