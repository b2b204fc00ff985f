"""What trials have shown about memory, kept from sweep to sweep: one file for each kind of device.

Kept are observations, not conclusions: what was asked of which limit, and whether it fitted. Another limit, another
version of torch or another frontier between the two may then draw its own conclusions.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from data_pipeline.schema.settings import Settings
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.schema.whole_files import write_atomically
from sweeps.records.throttle import Pace

_FORMAT_VERSION = 1

_MOST_KEPT = 4000
"""Observations of one version of torch, the newest: a file of some MB, which each trial's end reads and writes."""

SAME_LIMIT = 0.05
"""Limits that differ by no more of each other are alike: `memory: auto` is what happens to be free."""


class MemoryObservation(Settings):
    """One micro-batch that fitted into the memory of one worker, or did not."""

    shape: str
    """All that memory depends on besides the demand, in words: equal words, comparable demands."""
    micro_batch_size: int
    """Rows that one worker held at once."""
    accumulates: bool
    """Whether a batch took several micro-batches, which keeps their gradient meanwhile."""
    masking_rate: float
    """Share of tokens predicted; 1 for causal LM."""
    rows_filled: int
    """Share of the corpus's rows that holds tokens, in percent: padding takes less memory than is predicted."""
    predicted_bytes: int
    limit_bytes: int
    fits: bool
    trial: str
    """Folder of the sweep and name of the trial."""
    at: str
    """When it was seen: ISO 8601, UTC."""

    @property
    def said(self) -> tuple[object, ...]:
        """All of it but who saw it and when: of two that say the same one is enough."""
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
        """Sorts the oldest first."""
        return (self.at, self.trial)

    @property
    def demand(self) -> tuple[float, float]:
        """Axes with which the memory of one shape grows. A gradient that is kept meanwhile counts as half a row: more
        than the same micro-batch in one go, less than one row more."""
        return (self.micro_batch_size + self.accumulates / 2, self.masking_rate)

    def asks_as_much(self, other: "MemoryObservation") -> bool:
        """Whether this one needs at least the memory of the other: in every axis, and by prediction.

        The prediction has a say because memory does not rise with every row: from some sizes on the vocabulary head
        goes through in one chunk more.
        """
        return (
            self.shape == other.shape
            and all(mine >= theirs for mine, theirs in zip(self.demand, other.demand, strict=True))
            and self.predicted_bytes >= other.predicted_bytes
        )

    def under(self, limit_bytes: int) -> "MemoryObservation | None":
        """What it says of another limit; None where it says nothing.

        What ran out does so with less memory, what fitted does so with more. Between limits that are alike the sizes
        are taken to move with the limit.
        """
        ratio = limit_bytes / self.limit_bytes
        if (ratio <= 1 and not self.fits) or (ratio >= 1 and self.fits):
            return self
        if abs(ratio - 1) > SAME_LIMIT:
            return None
        return self.model_copy(update={"predicted_bytes": round(self.predicted_bytes * ratio)})


def without_repetitions(observations: Iterable[MemoryObservation]) -> list[MemoryObservation]:
    """Of observations that differ only in trial and time the last one; oldest first."""
    last = {seen.said: seen for seen in sorted(observations, key=lambda one: one.age)}
    return sorted(last.values(), key=lambda one: one.age)


def file_of_device(results_folder: Path, device_kind: str, suffix: str = "") -> Path:
    """Where something is kept that was learnt about a kind of device."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", device_kind).strip("-")
    return results_folder / "memory" / f"{name}{suffix}.json"


class MemoryStoreError(InputFault):
    """The file of observations cannot be read."""


class MemoryStore:
    """`results/memory/<kind of device>.json`: shared by all sweeps of a results folder, also by those that run now."""

    def __init__(self, results_folder: Path, device_kind: str) -> None:
        """
        Args:
            device_kind: `cpu`, or a GPU's name and memory.
        """
        self.path = file_of_device(results_folder, device_kind)
        self._device_kind = device_kind

    def load(self, torch_version: str) -> list[MemoryObservation]:
        """What was seen with this version of torch: kernels of another one may take other memory.

        Raises:
            MemoryStoreError: The file is damaged.
        """
        return self._read().get(torch_version, [])

    def add(self, observations: Sequence[MemoryObservation], torch_version: str) -> list[MemoryObservation]:
        """Add to what is there, whoever else adds at the same time; a reader sees the old file or the new one.

        Returns:
            All that is known now, by other sweeps that run as well.

        Raises:
            MemoryStoreError: The file is damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
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
                f"{self.path}, which holds what earlier sweeps learnt about memory, cannot be read ({error}). "
                "Remove it: sweeps start again from the prediction."
            ) from error

    def _as_text(self, known: dict[str, list[MemoryObservation]]) -> str:
        file: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
            "device": self._device_kind,
            "torch": {version: [one.model_dump() for one in seen] for version, seen in known.items()},
        }
        return json.dumps(file, indent=1, ensure_ascii=False) + "\n"


class Remembering:
    """Brings what a sweep sees into the store, and what others have seen meanwhile back.

    The file is read and written whole, so what fits, of which there is one a trial, goes there some at a time. What
    runs out goes there at once: it may spare another sweep, which runs beside this one, the same.

    Args:
        learn: Told all that is known then, by other sweeps as well.
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
        """Keep this, now or with what comes later."""
        self._waiting += seen
        if not all(one.fits for one in seen) or self._pace.is_due():
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        done = self._pace.start()
        self._learn(self._store.add(self._waiting, self._torch_version))
        self._waiting = []
        done()
