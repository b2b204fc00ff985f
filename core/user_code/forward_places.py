"""Errors of a backward pass, told with the line of the forward pass that made the operation."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from core.user_code.code_places import UserCodeError, place_in_text, place_of


@contextmanager
def backward_errors_placed(files: Sequence[str]) -> Iterator[None]:
    """Let torch remember the forward line of each operation in the block, which makes it slow, and name it in errors.

    Args:
        files: Files of the user.
    """
    with warnings.catch_warnings(record=True) as said, torch.autograd.set_detect_anomaly(True, check_nan=False):
        warnings.simplefilter("always")
        try:
            yield
        except UserCodeError as error:
            place = place_in_text("\n".join(str(one.message) for one in said), files)
            if place is None or place_of(error, files) is not None:
                raise
            _, _, words = str(error).partition(": ")
            raise UserCodeError(f"{place}: {words}") from error
