"""The data of a report, gathered once: records in order of rank, curves, refusals, the corpus."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.schema.manifest import Manifest, read_manifest
from sweeps.analysis.noise_floor import noise_floor, seed_groups, standings
from sweeps.analysis.result_tables import ranked
from sweeps.analysis.space_widening import Widening, widened_sweep
from sweeps.analysis.trial_curves import TrialCurves, read_curves
from sweeps.memory_knowledge.frontier_map import FrontierMap
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.trial_records import RefusedProposal, TrialRecord, TrialStore
from sweeps.settings.metric_config import Metric
from sweeps.settings.setting_paths import SEED
from sweeps.settings.sweep_config import SweepConfig


@dataclass(frozen=True)
class Findings:
    """The data of one sweep, finished or not."""

    sweep: SweepConfig
    summary: dict[str, Any]
    records: tuple[TrialRecord, ...]
    """Best first, as in trials.csv."""
    curves: dict[int, TrialCurves]
    """By trial number; a trial without reports has empty curves."""
    refused: tuple[RefusedProposal, ...]
    manifest: Manifest | None
    """None: the prepared corpus was deleted."""
    frontier: FrontierMap | None = None
    """None: the sweep runs."""

    @cached_property
    def completed(self) -> tuple[TrialRecord, ...]:
        """Completed trials with a loss and the metric that ranks them, best first."""
        return tuple(
            record
            for record in self.records
            if record.outcome is Outcome.COMPLETED
            and finite_loss(record) is not None
            and record.cost is not None
            and math.isfinite(record.cost)
        )

    @property
    def metric(self) -> Metric:
        """The metric that ranks trials."""
        return self.sweep.ranked_by

    @cached_property
    def _ranks(self) -> dict[int, int]:
        return {record.number: rank for rank, record in enumerate(self.records, start=1)}

    def rank(self, record: TrialRecord) -> int:
        """Rank from 1, as in trials.csv."""
        return self._ranks[record.number]

    @property
    def best(self) -> TrialRecord | None:
        """The best trial of the best settings."""
        return self.completed[0] if self.completed else None

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Swept settings and those of `start_with`; the seed only if it is swept."""
        listed = (path for record in sorted(self.records, key=lambda r: r.number) for path in record.settings)
        known = dict.fromkeys((*self.sweep.search, *listed))
        return tuple(path for path in known if path != SEED or SEED in self.sweep.search)

    def setting(self, record: TrialRecord | RefusedProposal, path: str) -> Any:
        """A trial's value of a setting, from the trial or else from the file."""
        if path in record.settings:
            return record.settings[path]
        return self.sweep.value_at(path)

    def of(self, outcome: Outcome | None) -> tuple[TrialRecord, ...]:
        """Trials of this outcome; None: those that run."""
        return tuple(record for record in self.records if record.outcome is outcome)

    @cached_property
    def repeats(self) -> tuple[tuple[TrialRecord, ...], ...]:
        """Groups of two or more completed trials that differ only in the seed, best group first."""
        return tuple(group.records for group in seed_groups(self.records) if group.count > 1)

    @cached_property
    def noise_nats(self) -> float | None:
        """Standard deviation of the loss between seeds, pooled over all repeats; None without repeats."""
        noise = noise_floor(self.records)
        return None if noise is None else noise.std_nats

    @cached_property
    def _tied_with_best(self) -> frozenset[int]:
        return frozenset(number for number, standing in standings(self.records).items() if standing.tie_group == 1)

    def is_tied_with_best(self, record: TrialRecord) -> bool:
        """Whether a trial of other settings ties with the best (difference below the noise)."""
        if self.best is None or record.number not in self._tied_with_best:
            return False
        best, other = (standings(self.records)[number].group for number in (self.best.number, record.number))
        return best.records != other.records


def gather(folder: Path, sweep: SweepConfig, records: Sequence[TrialRecord], summary: dict[str, Any]) -> Findings:
    """The records with their curves, refusals, corpus and frontier from the results folder."""
    store = TrialStore(folder / "trials")
    return Findings(
        sweep=widened_sweep(sweep, [Widening.model_validate(one) for one in store.load_widenings()]),
        summary=summary,
        records=tuple(ranked(records)),
        curves={record.number: read_curves(store.reports(record)) for record in records},
        refused=tuple(store.load_refusals()),
        manifest=_manifest(summary),
        frontier=_frontier(folder),
    )


def _frontier(folder: Path) -> FrontierMap | None:
    path = folder / MAP_FILE
    return FrontierMap.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def finite_loss(record: TrialRecord) -> float | None:
    """The last holdout loss; None if it is missing or not finite."""
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
