"""Memory observations of trials, kept between sweeps: one file per kind of device.

The file holds observations, not conclusions: a demand, a limit, and whether it fitted. A sweep with another limit draws
its own conclusions from them.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.files.own_files import own_lock
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.settings import Settings
from data_pipeline.schema.user_errors import InputFault
from sweeps.records.throttle import Pace

_FORMAT_VERSION = 1

_MOST_KEPT = 4000
"""Newest observations kept per version of torch: a few MB, read and written at the end of trials."""

SAME_LIMIT = 0.05
"""Relative difference up to which two limits count as equal: `memory: auto` takes the free memory, which varies."""


class MemoryObservation(Settings):
    """One micro-batch that fitted in the memory of one worker, or did not."""

    shape: str
    """All conditions of memory, without the demand, in words: equal words, comparable demands."""
    micro_batch_size: int
    """Rows that one worker held at once."""
    accumulates: bool
    """Whether a step accumulates several micro-batches, which keeps their gradient in memory."""
    masking_rate: float
    """Share of tokens predicted; 1 for causal LM."""
    rows_filled: int
    """Share of the corpus's rows that holds tokens, in percent: padding needs less memory than predicted."""
    predicted_bytes: int
    limit_bytes: int
    fits: bool
    trial: str
    """Folder of the sweep and name of the trial."""
    at: str
    """Time of the observation: ISO 8601, UTC."""

    @property
    def said(self) -> tuple[object, ...]:
        """The content without trial and time: of two with equal content one is enough."""
        return (
            self.shape,
            self.micro_batch_size,
            self.accumulates,
            self.masking_rate,
            self.rows_filled,
            self.predicted_bytes,
            self.limit_bytes,
            self.fits,
        )

    @property
    def age(self) -> tuple[str, str]:
        """Sort key, oldest first."""
        return (self.at, self.trial)

    @property
    def demand(self) -> tuple[float, float]:
        """Axes along which the memory of one shape grows.

        An accumulated gradient counts as half a row: more than the same micro-batch without it, less than one more row.
        """
        return (self.micro_batch_size + self.accumulates / 2, self.masking_rate)

    def asks_as_much(self, other: "MemoryObservation") -> bool:
        """Whether this one needs at least the memory of the other, on every axis and by prediction.

        The prediction counts because memory does not rise with every row: at some sizes the vocabulary head needs one
        more chunk.
        """
        return (
            self.shape == other.shape
            and all(mine >= theirs for mine, theirs in zip(self.demand, other.demand, strict=True))
            and self.predicted_bytes >= other.predicted_bytes
        )

    def under(self, limit_bytes: int) -> "MemoryObservation | None":
        """The observation under another limit; None if it does not apply there.

        A run that did not fit does not fit in less memory; a run that fitted fits in more. Between nearly equal limits
        (`SAME_LIMIT`) the predicted size is scaled with the limit.
        """
        ratio = limit_bytes / self.limit_bytes
        if (ratio <= 1 and not self.fits) or (ratio >= 1 and self.fits):
            return self
        if abs(ratio - 1) > SAME_LIMIT:
            return None
        return self.model_copy(update={"predicted_bytes": round(self.predicted_bytes * ratio)})


def without_repetitions(observations: Iterable[MemoryObservation]) -> list[MemoryObservation]:
    """The last of each set of observations with equal content; oldest first."""
    last = {seen.said: seen for seen in sorted(observations, key=lambda one: one.age)}
    return sorted(last.values(), key=lambda one: one.age)


def file_of_device(results_folder: Path, device_kind: str, suffix: str = "") -> Path:
    """File for knowledge about a kind of device."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", device_kind).strip("-")
    return results_folder / "memory" / f"{name}{suffix}.json"


class MemoryStoreError(InputFault):
    """The file of observations cannot be read."""


class MemoryStore:
    """`results/memory/<kind of device>.json`, shared by all sweeps of a results folder, also by running ones."""

    def __init__(self, results_folder: Path, device_kind: str) -> None:
        """
        Args:
            device_kind: `cpu`, or a GPU's name and memory.
        """
        self.path = file_of_device(results_folder, device_kind)
        self._device_kind = device_kind

    def load(self, torch_version: str) -> list[MemoryObservation]:
        """Observations with this version of torch; kernels of another version may need other memory.

        Raises:
            MemoryStoreError: The file is damaged.
        """
        return self._read().get(torch_version, [])

    def add(self, observations: Sequence[MemoryObservation], torch_version: str) -> list[MemoryObservation]:
        """Add observations under a lock; a concurrent reader sees the old file or the new one.

        Returns:
            All observations of this version of torch, also those of concurrent sweeps.

        Raises:
            MemoryStoreError: The file is damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with own_lock(self.path.with_suffix(".lock")):
            known = self._read()
            known[torch_version] = without_repetitions([*known.get(torch_version, []), *observations])[-_MOST_KEPT:]
            write_atomically(self.path, self._as_text(known))
            return known[torch_version]

    def _read(self) -> dict[str, list[MemoryObservation]]:
        if not self.path.exists():
            return {}
        try:
            file = json.loads(self.path.read_text(encoding="utf-8"))
            if file["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format {file['format_version']}; this version reads {_FORMAT_VERSION}")
            return {
                version: [MemoryObservation.model_validate(one) for one in observations]
                for version, observations in file["torch"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise MemoryStoreError(
                f"{self.path}, which holds the memory observations of earlier sweeps, cannot be read ({error}). "
                "Remove it; sweeps then start from the prediction."
            ) from error

    def _as_text(self, known: dict[str, list[MemoryObservation]]) -> str:
        file: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
            "device": self._device_kind,
            "torch": {version: [one.model_dump() for one in seen] for version, seen in known.items()},
        }
        return json.dumps(file, indent=1, ensure_ascii=False) + "\n"


class Remembering:
    """Writes the observations of a sweep to the store, and reads back those of concurrent sweeps.

    The file is read and written whole, so runs that fitted, one per trial, are written in groups. A run that ran out of
    memory is written at once: it may spare a concurrent sweep the same failure.

    Args:
        learn: Gets all observations of the store after each write.
    """

    def __init__(
        self,
        store: MemoryStore,
        torch_version: str,
        *,
        learn: Callable[[list[MemoryObservation]], None],
        pace: Pace | None = None,
    ) -> None:
        self._store, self._torch_version, self._learn = store, torch_version, learn
        self._pace = pace or Pace()
        self._waiting: list[MemoryObservation] = []

    def add(self, seen: Sequence[MemoryObservation]) -> None:
        """Store observations, now or with later ones."""
        self._waiting += seen
        if not all(one.fits for one in seen) or self._pace.is_due():
            self.flush()

    def flush(self) -> None:
        """Write the waiting observations."""
        if not self._waiting:
            return
        done = self._pace.start()
        self._learn(self._store.add(self._waiting, self._torch_version))
        self._waiting = []
        done()
