"""Reads small text and JSON files that may come from strangers: no file takes more memory than its limit allows."""

from pathlib import Path
from typing import Any

from data_pipeline.files.plain_json import parse_json

MOST_BYTES = 16 << 20
"""Largest file that is read. The index of the largest published models has 9 MB."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is larger than `MOST_BYTES`, or not in UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES >> 20} MiB, the most that is read of such a file")
    return data.decode("utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: As `read_text`; or it is not JSON, or too deeply nested.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as cause:
        raise ValueError(f"{path}: {cause}") from cause
