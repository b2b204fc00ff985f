"""Memory predictions kept in a file, so that another process need not trace the same shape again.

A prediction is a pure function of the shape, of the traced code, of torch and Python, and of a few properties of the
process. The key covers all of them, so a kept prediction is never out of date, and machines may share a file.
"""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from core.memory_prediction.memory_trace import Part, RunShape
from data_pipeline.files.own_files import own_lock
from data_pipeline.files.plain_json import parse_object
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.settings import Settings

_FORMAT_VERSION = 1
_MOST_KEPT = 2000
"""Newest predictions kept, about half a megabyte."""
_LARGEST_FILE_BYTES = 4 * 2**20
_LOCK_TIMEOUT_S = 10.0
_KEY = re.compile("[0-9a-f]{64}")

_TRACED_FOLDERS = ("core", "data_pipeline/schema", "data_pipeline/files", "data_pipeline/tokens")
"""All code of ours that a trace runs, below the folder of the packages."""


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Predicted peak of one worker's tensors during training."""

    peak_bytes: int
    parts: dict[str, int]
    """Bytes of each part at the peak, largest first; their sum is the peak. On CUDA, `allocator` is the fragmentation
    of the caching allocator."""

    def share(self, part: str) -> float:
        """Share of one part of the peak, in [0, 1]."""
        return self.parts.get(part, 0) / self.peak_bytes


class KeptPredictions:
    """A file of predictions, which several processes may use at once.

    A file that cannot be read or written costs traces and one line, not the command.

    Args:
        say: Receives that line.
    """

    def __init__(self, file: Path, *, say: Callable[[str], None]) -> None:
        self._file, self._say = file, say
        self._entries: dict[str, Any] | None = None
        """Content of the file, each entry unchecked; None before it is read."""
        self._checked: dict[RunShape, MemoryPrediction] = {}
        self._has_spoken = False
        self._can_write = True

    def prediction(self, shape: RunShape, trace: Callable[[RunShape], MemoryPrediction]) -> MemoryPrediction:
        """The kept prediction of a shape, else a new one by `trace`, which is kept."""
        if shape not in self._checked:
            key = key_of(shape)
            self._checked[shape] = self._kept(key) or self._with(key, trace(shape))
        return self._checked[shape]

    def _kept(self, key: str) -> MemoryPrediction | None:
        if self._entries is None:
            self._entries = self._read()
        if key not in self._entries:
            return None
        try:
            entry = _Entry.model_validate(self._entries[key])
        except ValidationError:
            self._speak("has an invalid entry; it is predicted again and replaced")
            return None
        parts = sorted(entry.parts.items(), key=lambda part: -part[1])
        return MemoryPrediction(entry.peak_bytes, {str(part): num_bytes for part, num_bytes in parts})

    def _with(self, key: str, prediction: MemoryPrediction) -> MemoryPrediction:
        """The prediction, after adding it to the file."""
        if not self._can_write:
            return prediction
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with own_lock(self._file.with_suffix(".lock")).acquire(timeout=_LOCK_TIMEOUT_S):
                # Other processes add to the same file.
                entries = self._read()
                entries.pop(key, None)
                entries[key] = asdict(prediction)
                self._entries = dict(list(entries.items())[-_MOST_KEPT:])
                file = {"format_version": _FORMAT_VERSION, "predictions": self._entries}
                write_atomically(self._file, json.dumps(file) + "\n")
        except OSError as error:
            self._can_write = False  # Waiting for a lock that another process holds would cost more than traces.
            self._speak(f"cannot be written ({error.strerror or error}); the next command predicts again")
        return prediction

    def _read(self) -> dict[str, Any]:
        try:
            # A pipe in place of the file would block, and a large file would fill the memory.
            if not self._file.is_file():
                return {}
            if self._file.stat().st_size > _LARGEST_FILE_BYTES:
                raise ValueError("it is too large")
            content = parse_object(self._file.read_bytes())
            if content.get("format_version") != _FORMAT_VERSION:
                raise ValueError(f"it is not of format {_FORMAT_VERSION}")
            entries = content.get("predictions")
            if not isinstance(entries, dict) or not all(map(_KEY.fullmatch, entries)):
                raise ValueError("it holds something else")
        except (OSError, ValueError) as error:
            self._speak(f"cannot be read ({error}); memory is predicted again, and the file is replaced")
            return {}
        return entries

    def _speak(self, fault: str) -> None:
        if not self._has_spoken:
            self._say(f"{self._file}, which keeps memory predictions, {fault}")
        self._has_spoken = True


class _Entry(Settings):
    """A prediction in the file."""

    peak_bytes: Annotated[int, Field(strict=True, ge=1, lt=2**63)]
    parts: dict[Part | Literal["workspaces", "allocator"], Annotated[int, Field(strict=True, ge=0)]]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if sum(self.parts.values()) != self.peak_bytes:
            raise ValueError("the parts do not add up to the peak")
        return self


_USED: ContextVar[KeptPredictions | None] = ContextVar("kept_predictions", default=None)


@contextmanager
def predictions_kept_in(file: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Context in which predictions are taken from a file, and new ones are added to it.

    Args:
        say: Receives a line if the file cannot be read or written.
    """
    token = _USED.set(KeptPredictions(file, say=say))
    try:
        yield
    finally:
        _USED.reset(token)


def kept_or_traced(shape: RunShape, trace: Callable[[RunShape], MemoryPrediction]) -> MemoryPrediction:
    """The prediction of a shape: outside `predictions_kept_in` by `trace`."""
    kept = _USED.get()
    return trace(shape) if kept is None else kept.prediction(shape, trace)


def key_of(shape: RunShape) -> str:
    """SHA-256 of everything that a prediction depends on, in hexadecimal."""
    conditions = {
        "shape": _shape_type().dump_python(shape, mode="json"),
        "source": _our_source(),
        "torch": str(torch.__version__),
        # The lifetime of a temporary depends on the interpreter.
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "process": _process(),
    }
    return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()


def _process() -> dict[str, Any]:
    """What torch looks at when it chooses an operator for tensors without values.

    Sizes of blocks (`core/layers/cache_blocks.py`) are constants of the source, and no operator allocates by the number
    of threads. `precision: auto` is a number format in the shape already.
    """
    return {
        "processor": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "onednn": bool(torch.backends.mkldnn.enabled),
        "attention": [
            torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        ],
        "numbers": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@lru_cache(maxsize=1)
def _shape_type() -> TypeAdapter[RunShape]:
    return TypeAdapter(RunShape)


@lru_cache(maxsize=1)
def _our_source() -> str:
    root = Path(__file__).parents[2]
    return source_digest(root, [root / folder for folder in _TRACED_FOLDERS])


def source_digest(root: Path, folders: Sequence[Path]) -> str:
    """SHA-256 of the names and contents of all Python files in these folders below `root`, in hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
