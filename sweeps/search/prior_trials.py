"""Trials of earlier sweeps as prior knowledge of the search, trusted as far as they predict its own trials.

Each earlier loss becomes a rank among those of its sweep, since losses on another corpus or vocabulary have another
level. As long as they are trusted, a few of the earlier trials stand among the observations of the sampler, with losses
at their rank among the sweep's own. An own trial nearby replaces an earlier one.

The trust begins with a discount for each difference between the sweeps, and moves with the rank correlation between the
losses of this sweep's trials and those predicted for their settings. A misleading prior is dropped once it contradicts
a few trials.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.schema.user_errors import InputFault
from sweeps.analysis.spearman import spearman
from sweeps.horizon.setting_axes import SettingAxis, axes_of, coordinate_rows
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SUMMARY_FILE, ResultsError, read_summary
from sweeps.records.trial_records import DamagedRecordError, TrialRecord, TrialStore
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file

FEWEST_OWN = 3
"""Own losses below which no correlation is computed."""
_DISCOUNT = 0.5
"""Factor on the trust for each difference that may move the best settings."""
_WORTH = 2.0
"""Own trials that the discount counts as much as: a few trials overrule it."""
_LEAST_TRUST = 0.2
"""Trust below which no earlier trial is used."""
_MOST = 8
"""Earlier trials among the observations at full trust, before any own one."""
_FADES_OVER = 4.0
"""Own losses after which half as many earlier trials remain."""
_NEAR = 0.1
"""Distance, in shares of the ranges, within which an own trial replaces an earlier one."""
_KERNEL = 0.15
"""Width, in shares of the ranges, over which earlier losses predict."""

Settings = Mapping[str, Any]


class SearchFromError(InputFault):
    """Folders of `search_from` cannot be used; the message lists each with its reason."""


@dataclass(frozen=True)
class EarlierTrials:
    """Losses of one earlier sweep, within the search space of this one."""

    folder: str
    settings: tuple[dict[str, Any], ...]
    losses: tuple[float, ...]
    """In nats per token, comparable with each other alone."""
    differences: tuple[str, ...] = ()
    """What differs between the sweeps and may move the best settings; each halves the first trust."""
    num_outside: int = 0
    """Trials left out because their settings lie outside this sweep's space."""

    @property
    def trust(self) -> float:
        """Trust before any own trial, in (0, 1]."""
        return float(_DISCOUNT ** len(self.differences))

    @property
    def in_words(self) -> str:
        """Number of trials, and the discount with its reasons."""
        words = f"{len(self.losses)} trials of {self.folder} as prior knowledge, first trust {self.trust:.2g}"
        words += f", for {' and '.join(self.differences)}" if self.differences else ""
        return words + (f"; {self.num_outside} lie outside the search space" if self.num_outside else "")


@dataclass(frozen=True)
class Trust:
    """How far earlier trials are trusted, and why."""

    value: float
    """In [0, 1]; 0: not at all."""
    correlation: float | None
    """Rank correlation of the own losses with the predicted ones; None with too few of them."""
    num_own: int

    @property
    def is_used(self) -> bool:
        """Whether earlier trials are among the observations."""
        return self.value >= _LEAST_TRUST


@dataclass(frozen=True)
class PriorKnowledge:
    """The earlier trials of one sweep's `search_from`."""

    axes: tuple[SettingAxis, ...]
    earlier: tuple[EarlierTrials, ...]

    def trust(self, own: Iterable[TrialRecord]) -> dict[str, Trust]:
        """Trust in each earlier sweep by its folder, after own trials."""
        settings, losses = self._own(own)
        return {one.folder: self._trust(one, settings, losses) for one in self.earlier}

    def observations(self, own: Sequence[TrialRecord], *, fades: bool = False) -> list[tuple[dict[str, Any], float]]:
        """Earlier settings with the losses that they stand for here, the best of each trusted sweep first.

        Args:
            fades: Fewer of them as own losses come, for a model of distances: ranks say little of them.
        """
        settings, losses = self._own(own)
        near = self._unit(settings)
        found = []
        for one in self.earlier:
            trust = self._trust(one, settings, losses)
            most = _MOST / (1 + len(losses) / _FADES_OVER) if fades else _MOST
            count = round(trust.value * most) if trust.is_used else 0
            for index in _spread(one.losses, count):
                point = self._unit([one.settings[index]])
                if len(near) and np.linalg.norm(near - point, axis=1).min() < _NEAR:
                    continue
                found.append((one.settings[index], _at_rank(one.losses, index, losses)))
        return found

    def lowest_first(self, settings: Sequence[Settings], own: Sequence[TrialRecord]) -> list[int]:
        """Indices of settings that no own trial is near to, by the predicted place among the earlier losses.

        Empty without trust in any earlier sweep.
        """
        seen, losses = self._own(own)
        trusted = [(one, trust) for one in self.earlier if (trust := self._trust(one, seen, losses)).is_used]
        if not trusted or not settings:
            return []
        places = sum(
            trust.value * (self._predicted(one, settings) - np.mean(one.losses)) / max(np.std(one.losses), 1e-9)
            for one, trust in trusted
        )
        tried = self._unit([record.settings for record in own if self._is_whole(record.settings)])
        points = self._unit(settings)
        is_new = np.array([not len(tried) or np.linalg.norm(tried - point, axis=1).min() >= _NEAR for point in points])
        return [int(index) for index in np.argsort(places, kind="stable") if is_new[index]]

    def in_words(self, own: Sequence[TrialRecord]) -> list[str]:
        """A sentence for each earlier sweep: its trials, its correlation with this sweep, and how it ended."""
        words = []
        for one in self.earlier:
            found = self._trust(one, *self._own(own))
            text = one.in_words
            if found.correlation is None:
                text += f"; with {found.num_own} own losses nothing is known of how well they predict"
            else:
                text += f"; rank correlation {found.correlation:.2f} with {found.num_own} own trials"
                text += f", trust {found.value:.2f}" if found.is_used else ", so they were dropped"
            words.append(text)
        return words

    def saved_in_words(self, num_random: int) -> str:
        """What the earlier trials have certainly saved.

        Args:
            num_random: Trials at random with which the search begins otherwise.
        """
        count = min(num_random, len(self.observations([])))
        return (
            f"{count} of the first {num_random} trials were proposed from them instead of at random; only a sweep "
            "without them could show whether the winner is better for it"
        )

    def _own(self, records: Iterable[TrialRecord]) -> tuple[list[Settings], list[float]]:
        """Settings and comparable losses of own trials; those of `start_with` may lack a setting."""
        return _comparable(record for record in records if self._is_whole(record.settings))

    def _is_whole(self, settings: Settings) -> bool:
        return all(axis.path in settings for axis in self.axes)

    def _trust(self, one: EarlierTrials, settings: Sequence[Settings], losses: Sequence[float]) -> Trust:
        correlation = None
        if len(losses) >= FEWEST_OWN:
            correlation = spearman(self._predicted(one, settings), losses)
        weight = 0 if correlation is None else len(losses)
        value = (_WORTH * one.trust + weight * (correlation or 0.0)) / (_WORTH + weight)
        return Trust(min(1.0, max(0.0, value)), correlation, len(losses))

    def _predicted(self, one: EarlierTrials, settings: Sequence[Settings]) -> np.ndarray:
        """Losses [n] that an earlier sweep predicts: averages over its trials, the near ones first."""
        distance = np.linalg.norm(self._unit(settings)[:, None] - self._unit(one.settings)[None], axis=2)
        nearest = distance.min(axis=1, keepdims=True)
        # Relative to the nearest one: far from all of them the nearest still counts.
        weight = np.exp(-(distance**2 - nearest**2) / (2 * _KERNEL**2))
        return np.asarray((weight * np.array(one.losses)).sum(axis=1) / weight.sum(axis=1))

    def _unit(self, settings: Sequence[Settings]) -> np.ndarray:
        """Settings [n, K] in shares of the ranges of the space; different words are a whole range apart."""
        rows = coordinate_rows(self.axes, settings)
        low, high = self._ends
        return np.asarray((rows - low) / (high - low))

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        numbers = [(axis.coordinate(axis.low), axis.coordinate(axis.high)) for axis in self.axes]
        ends = [(0.0, 1.0) if axis.scale == "words" else pair for axis, pair in zip(self.axes, numbers, strict=True)]
        low, high = np.array(ends, float).reshape(-1, 2).T
        return low, high


def prior_knowledge(sweep: SweepConfig, results_folder: Path, *, data_fingerprint: str | None) -> PriorKnowledge | None:
    """The earlier trials that a sweep file names; None if it names none.

    Args:
        results_folder: Where folders are looked up that the current one does not have.
        data_fingerprint: Of the prepared corpus; None: not prepared yet, so it counts as another.

    Raises:
        SearchFromError: Folders cannot be used; the message lists all of them.
    """
    if not sweep.search_from:
        return None
    found, faults = [], []
    for name in sweep.search_from:
        folder = Path(name) if Path(name).exists() else results_folder / name
        try:
            found.append(_read(folder, sweep, data_fingerprint))
        except SearchFromError as fault:
            faults.append(f"search_from: {name}: {fault}")
    if faults:
        raise SearchFromError("\n".join(faults))
    return PriorKnowledge(axes_of(sweep.search), tuple(found))


def _read(folder: Path, sweep: SweepConfig, data_fingerprint: str | None) -> EarlierTrials:
    if not (folder / "sweep.yaml").is_file():
        raise SearchFromError(
            "it is no results folder of a sweep, since it has no sweep.yaml. Give results/<name>-<id>."
        )
    try:
        earlier = load_sweep_file(folder / "sweep.yaml")
        records = TrialStore(folder / "trials").load_all()
        summary = read_summary(folder) if (folder / SUMMARY_FILE).exists() else {}
    except (SettingsFileError, DamagedRecordError, ResultsError, OSError) as error:
        raise SearchFromError(f"it cannot be read: {error}") from error
    faults = list(_incompatible(earlier, sweep))
    if faults:
        raise SearchFromError(f"{'; '.join(faults)}. Take it out of the list.")
    settings, losses = _comparable(records)
    inside = [index for index, one in enumerate(settings) if _holds(sweep, one)]
    if not inside:
        raise SearchFromError("none of its trials has both a loss and settings in this search space. Take it out.")
    return EarlierTrials(
        folder.name,
        tuple(dict(settings[index]) for index in inside),
        tuple(losses[index] for index in inside),
        tuple(_differences(earlier, sweep, summary.get("data", {}).get("fingerprint"), data_fingerprint)),
        len(settings) - len(inside),
    )


def _incompatible(earlier: SweepConfig, sweep: SweepConfig) -> Iterator[str]:
    theirs, ours = _kind(earlier), _kind(sweep)
    if theirs != ours:
        yield f"its objective is {theirs}, and that of this sweep {ours}"
    missing = [path for path in sweep.search if path not in earlier.search and path != MICRO_BATCH]
    others = [path for path in earlier.search if path not in sweep.search and path != MICRO_BATCH]
    if missing:
        yield f"it does not search {', '.join(missing)}"
    if others:
        yield f"it searches {', '.join(others)}, which this sweep does not"


def _kind(sweep: SweepConfig) -> str:
    return next(name for name, value in sweep.objective if value is not None)


def _differences(
    earlier: SweepConfig, sweep: SweepConfig, their_data: str | None, our_data: str | None
) -> Iterator[str]:
    """Differences that may move the best settings; their trials stay comparable with each other."""
    if their_data is None or their_data != our_data:
        yield "another vocabulary" if earlier.tokenizer != sweep.tokenizer else "another corpus"
    if earlier.model != sweep.model:
        yield "another model"
    swept = {path.removeprefix("training.") for path in sweep.search if path.startswith("training.")}
    ours, theirs = (one.training.model_dump(exclude=swept) for one in (sweep, earlier))
    if ours != theirs:
        yield "other settings of training"
    lengths = earlier.budget.tokens_per_trial, sweep.budget.tokens_per_trial
    if lengths[0] != lengths[1]:
        yield "another length of training"


def _holds(sweep: SweepConfig, settings: Settings) -> bool:
    return all(
        path in settings and distribution.holds(settings[path])
        for path, distribution in sweep.search.items()
        if path != MICRO_BATCH
    )


def _comparable(records: Iterable[TrialRecord]) -> tuple[list[Settings], list[float]]:
    """Settings and losses of trials at one length: at the end, or at the rung that the most trials have reached."""
    known = [one for one in records if not one.is_repeat and one.twin_of is None]
    at: dict[int, list[tuple[Settings, float]]] = {}
    for one in known:
        for rung, loss in one.rung_losses.items():
            at.setdefault(rung, []).append((one.settings, loss))
    finals: list[tuple[Settings, float]] = [
        (one.settings, one.loss) for one in known if one.outcome is Outcome.COMPLETED and one.loss is not None
    ]
    lengths = [finals, *(at[rung] for rung in sorted(at, reverse=True))]
    pairs = max(lengths, key=len)
    usable = [(settings, loss) for settings, loss in pairs if math.isfinite(loss)]
    return [settings for settings, _ in usable], [loss for _, loss in usable]


def _spread(losses: Sequence[float], count: int) -> list[int]:
    """Indices of `count` losses, evenly over their ranks, the lowest first."""
    order = sorted(range(len(losses)), key=lambda index: losses[index])
    if count >= len(order):
        return order
    return [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]


def _at_rank(losses: Sequence[float], index: int, own: Sequence[float]) -> float:
    """The loss at the same share of the own losses as an earlier one has among its own; itself without own losses."""
    if len(own) < FEWEST_OWN:
        return losses[index]
    share = sum(other < losses[index] for other in losses) / max(1, len(losses) - 1)
    return float(np.quantile(np.array(own), min(1.0, share)))
