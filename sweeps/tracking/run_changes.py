"""What runs of MLflow are to get, and whoever brings it to a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlflow.entities import DatasetInput, Metric


@dataclass
class RunChange:
    """What one run is to get."""

    run_id: str | None
    """None: it is to be made; set as soon as it is."""
    name: str = ""
    """Of a run that is to be made, as is what follows up to its data sets."""
    started_ms: int | None = None
    """Since 1970; None: now."""
    datasets: Sequence[DatasetInput] = ()
    """What it reads, where that is not known of it."""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    status: str | None = None
    """MLflow's word for it; None: it stays."""
    ended_ms: int | None = None
    """Since 1970, of a status that ends it."""


class RunWriter(Protocol):
    """Brings changes of runs to a store."""

    def write(self, changes: Sequence[RunChange]) -> None:
        """All of them. After an exception some may be there; writing them again changes nothing about those."""
