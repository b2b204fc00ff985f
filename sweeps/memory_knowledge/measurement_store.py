"""Measurements of a kind of device, kept between sweeps: one entry per shape in one JSON file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from data_pipeline.files.own_files import own_lock
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.settings import Settings
from sweeps.memory_knowledge.memory_observations import MemoryStoreError

_FORMAT_VERSION = 1


class OfShape(Settings):
    """A measurement of one shape."""

    shape: str
    """All conditions of the measurement, in words: equal words, equal results."""


Entry = TypeVar("Entry", bound=OfShape)


class KeptMeasurements(Generic[Entry]):
    """A file in `results/memory/`, shared by all sweeps of a results folder, also by running ones.

    Args:
        what: The content in words, for the error about a damaged file.
    """

    def __init__(self, file: Path, entry: type[Entry], *, what: str) -> None:
        self._file, self._entry, self._what = file, entry, what

    def read(self) -> dict[str, Entry]:
        """All entries, by shape.

        Raises:
            MemoryStoreError: The file is damaged.
        """
        if not self._file.exists():
            return {}
        try:
            file = json.loads(self._file.read_text(encoding="utf-8"))
            if file["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format {file['format_version']}; this version reads {_FORMAT_VERSION}")
            entries = [self._entry.model_validate(one) for one in file["shapes"]]
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise MemoryStoreError(
                f"{self._file}, which holds {self._what}, cannot be read ({error}). Remove it; it will be measured "
                "again."
            ) from error
        return {entry.shape: entry for entry in entries}

    def add(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Add entries to the file; all entries of the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with own_lock(self._file.with_suffix(".lock")):
            # Concurrent sweeps add to the same file.
            known = self.read() | dict(entries)
            kept = [entry.model_dump(mode="json") for entry in known.values()]
            write_atomically(
                self._file, json.dumps({"format_version": _FORMAT_VERSION, "shapes": kept}, indent=1) + "\n"
            )
        return known
