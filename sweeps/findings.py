"""Everything a report is written from, gathered once: records in order of rank, curves, refusals, the corpus."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.manifest import Manifest, read_manifest
from sweeps.frontier_map import MAP_FILE, FrontierMap
from sweeps.outcomes import Outcome
from sweeps.results import ranked
from sweeps.sweep_config import SweepConfig
from sweeps.trial_curves import TrialCurves, read_curves
from sweeps.trial_records import RefusedProposal, TrialRecord, TrialStore

SEED = "training.seed"


@dataclass(frozen=True)
class Findings:
    """One sweep, finished or not."""

    sweep: SweepConfig
    summary: dict[str, Any]
    records: tuple[TrialRecord, ...]
    """Best first, as in trials.csv."""
    curves: dict[int, TrialCurves]
    """By trial number; a trial without reports has empty curves."""
    refused: tuple[RefusedProposal, ...]
    manifest: Manifest | None
    """None: the prepared corpus is not there any more."""
    frontier: FrontierMap | None = None
    """None: the sweep has not ended yet."""

    @cached_property
    def completed(self) -> tuple[TrialRecord, ...]:
        """Completed trials with a loss, best first."""
        losses = {r.number: loss for r in self.of(Outcome.COMPLETED) if (loss := finite_loss(r)) is not None}
        with_loss = (record for record in self.records if record.number in losses)
        return tuple(sorted(with_loss, key=lambda record: losses[record.number]))

    @cached_property
    def _ranks(self) -> dict[int, int]:
        return {record.number: rank for rank, record in enumerate(self.records, start=1)}

    def rank(self, record: TrialRecord) -> int:
        """Its place from 1, as in trials.csv."""
        return self._ranks[record.number]

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the smallest loss."""
        return self.completed[0] if self.completed else None

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Settings that differ between trials, or could have."""
        listed = (path for record in sorted(self.records, key=lambda r: r.number) for path in record.settings)
        return tuple(dict.fromkeys((*self.sweep.search, *listed)))

    def setting(self, record: TrialRecord | RefusedProposal, path: str) -> Any:
        """A trial's value of a setting, whether it was swept in this trial or not."""
        if path in record.settings:
            return record.settings[path]
        value: Any = self.sweep
        for part in path.split("."):
            value = getattr(value, part, None)
        return value

    def of(self, outcome: Outcome | None) -> tuple[TrialRecord, ...]:
        """Trials that ended so."""
        return tuple(record for record in self.records if record.outcome is outcome)

    @cached_property
    def repeats(self) -> tuple[tuple[TrialRecord, ...], ...]:
        """Groups of two or more completed trials that differ in nothing but the seed, best group first."""
        groups: dict[str, list[TrialRecord]] = {}
        for record in self.completed:
            key = repr([self.setting(record, path) for path in self.paths if path != SEED])
            groups.setdefault(key, []).append(record)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    @cached_property
    def noise_nats(self) -> float | None:
        """Standard deviation of the loss between seeds, pooled over all repeats; None without repeats."""
        squares = degrees = 0.0
        for group in self.repeats:
            losses = [loss for record in group if (loss := finite_loss(record)) is not None]
            mean = math.fsum(losses) / len(losses)
            squares += math.fsum((loss - mean) ** 2 for loss in losses)
            degrees += len(losses) - 1
        return math.sqrt(squares / degrees) if degrees else None

    def is_tied_with_best(self, record: TrialRecord) -> bool:
        """Whether the difference to the best is within two standard errors of a difference between single runs."""
        if self.best is None or self.noise_nats is None or record.number == self.best.number:
            return False
        best_loss, loss = finite_loss(self.best), finite_loss(record)
        if best_loss is None or loss is None or record.outcome is not Outcome.COMPLETED:
            return False
        return loss - best_loss <= 2 * math.sqrt(2) * self.noise_nats


def gather(folder: Path, sweep: SweepConfig, records: Sequence[TrialRecord], summary: dict[str, Any]) -> Findings:
    """Read what the records do not hold from a sweep's results folder."""
    store = TrialStore(folder / "trials")
    return Findings(
        sweep=sweep,
        summary=summary,
        records=tuple(ranked(records)),
        curves={record.number: read_curves(store.reports(record)) for record in records},
        refused=tuple(store.load_refusals()),
        manifest=_manifest(summary),
        frontier=_frontier(folder),
    )


def _frontier(folder: Path) -> FrontierMap | None:
    path = folder / MAP_FILE
    return FrontierMap.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def finite_loss(record: TrialRecord) -> float | None:
    """The last holdout loss, if it is a number to compare."""
    return record.loss if record.loss is not None and math.isfinite(record.loss) else None


def speed(record: TrialRecord) -> float | None:
    """Tokens per second, rounded as in trials.csv, so that the files hold equal numbers."""
    return None if record.tokens_per_s is None else round(record.tokens_per_s, 1)


def _manifest(summary: dict[str, Any]) -> Manifest | None:
    folder = (summary.get("data") or {}).get("folder")
    if folder is None:
        return None
    try:
        return read_manifest(Path(folder))
    except ValueError:
        return None  # Prepared corpora may be deleted once a sweep is done; the summary has the figures.
