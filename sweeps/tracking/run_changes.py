"""Changes of MLflow runs, and the writers that bring them to a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlflow.entities import DatasetInput, Metric


@dataclass
class RunChange:
    """A change of one run."""

    run_id: str | None
    """None: create the run; set as soon as it exists."""
    name: str = ""
    """Name of a new run."""
    started_ms: int | None = None
    """Start of a new run, in milliseconds since 1970. None: now."""
    datasets: Sequence[DatasetInput] = ()
    """Data sets that the run reads and the store does not know yet."""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    status: str | None = None
    """New status in MLflow's terms. None: unchanged."""
    ended_ms: int | None = None
    """End of the run, in milliseconds since 1970, with a final status."""


class RunWriter(Protocol):
    """Writes changes of runs to a store."""

    def write(self, changes: Sequence[RunChange]) -> None:
        """Write all changes. After an exception some may be written; writing them again has no effect."""
