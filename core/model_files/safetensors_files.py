"""Tensors of a safetensors file; a damaged file is an error in the user's input."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.schema.user_errors import InputFault, first_line


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name.

    Raises:
        InputFault: The file is missing, damaged, or holds a number format that torch lacks.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as cause:
        raise InputFault(
            f"{file} cannot be read as safetensors: {first_line(cause)}; copy it again, or give another folder"
        ) from cause
