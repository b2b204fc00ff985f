"""Losses of real trainings by settings and length, read from CSV tables: the world in which a replayed sweep lives."""

import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

LEARNING_RATE, BATCH = "training.learning_rate", "training.batch_size"

Setting = tuple[float, ...]
"""Values of one setting, in the order of the axes of its table."""


@dataclass(frozen=True)
class LossTable:
    """One job: the losses of a grid of settings, each trained at several lengths."""

    name: str
    axes: Mapping[str, tuple[float, ...]]
    """Dotted path of a swept setting to its values, ascending."""
    lengths: tuple[int, ...]
    """Tokens of training, ascending; the last is the full length."""
    annealed: Mapping[tuple[Setting, int], tuple[float, ...]]
    """Setting and length to the loss at the end of a training of that length, in nats per token, for each seed."""
    on_the_way: Mapping[tuple[Setting, int], float]
    """Setting and tokens to the loss of a training of the full length at that point, its first seed; empty where the
    table has only the ends of trainings."""

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Settings whose loss is known at every length."""
        known = (setting for setting, length in self.annealed if length == self.full)
        return tuple(sorted(s for s in known if all((s, length) in self.annealed for length in self.lengths)))

    @cached_property
    def settings_known(self) -> frozenset[Setting]:
        """The same, for questions of membership."""
        return frozenset(self.settings)

    @property
    def full(self) -> int:
        """Tokens of the full length."""
        return self.lengths[-1]

    @property
    def grid_tokens(self) -> int:
        """Tokens that the full grid costs: every setting at the full length."""
        return len(self.settings) * self.full

    def loss(self, setting: Setting, length: int, *, seed: int = 0) -> float:
        """Loss of a training of this length; seeds beyond those of the table begin again with its first."""
        losses = self.annealed[setting, length]
        return losses[seed % len(losses)]

    def raw_loss(self, setting: Setting, tokens: int) -> float:
        """Loss at this point of a full training; where the table has none, that of a training of this length."""
        return self.on_the_way.get((setting, tokens)) or self.loss(setting, tokens)

    def true_loss(self, setting: Setting) -> float:
        """Mean loss over the seeds at the full length."""
        return fmean(self.annealed[setting, self.full])

    @cached_property
    def best_loss(self) -> float:
        """Lowest true loss of the table."""
        return min(map(self.true_loss, self.settings))

    def within(self, kept: Mapping[str, tuple[float, ...]]) -> "LossTable":
        """The part of the table with these values of its axes; runs shorter than the full length are all kept."""
        annealed = {
            (setting, length): losses
            for (setting, length), losses in self.annealed.items()
            if length < self.full or all(v in axis for v, axis in zip(setting, kept.values(), strict=True))
        }
        return replace(self, axes=dict(kept), annealed=annealed)

    def regret(self, setting: Setting) -> float:
        """Nats by which the true loss of a setting is above the best of the table."""
        return self.true_loss(setting) - self.best_loss

    @cached_property
    def seed_deviation(self) -> float | None:
        """Standard deviation of the full-length loss between seeds, pooled over settings; None with one seed each."""
        groups = [ls for (_, length), ls in self.annealed.items() if length == self.full and len(ls) > 1]
        degrees = sum(len(losses) - 1 for losses in groups)
        squares = sum((loss - fmean(losses)) ** 2 for losses in groups for loss in losses)
        return math.sqrt(squares / degrees) if degrees else None

    def values(self, setting: Setting) -> dict[str, float]:
        """A setting by dotted path; batch sizes are whole numbers."""
        return {path: int(v) if path == BATCH else v for path, v in zip(self.axes, setting, strict=True)}

    def setting_of(self, values: Mapping[str, float]) -> Setting:
        """The setting of the table that is nearest on every axis."""
        return tuple(
            min(axis, key=lambda known: abs(math.log(known / values[path]))) for path, axis in self.all_axes.items()
        )

    @cached_property
    def all_axes(self) -> Mapping[str, tuple[float, ...]]:
        """All values of the table, also those that only shorter runs have."""
        return {path: tuple(sorted({setting[i] for setting, _ in self.annealed})) for i, path in enumerate(self.axes)}


def read_tables(path: Path) -> list[LossTable]:
    """The jobs of a CSV file: the public table, the pilot, or a table of tests/benchmarks/ground_truth.

    Raises:
        ValueError: The columns are those of none of them.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0])
    if {"N", "D", "lr", "bs", "smooth loss"} <= columns:
        return list(_public_tables(path.stem, rows))
    if {"share_of_length", "learning_rate", "batch_rows", "holdout_loss"} <= columns:
        return [_pilot(path.stem, rows)]
    if {"learning_rate", "batch_rows", "seed", "trunk_tokens", "annealed_1_1"} <= columns:
        return [_ground_truth(path.stem, rows)]
    raise ValueError(f"{path}: unknown columns {sorted(columns)}; tests/benchmarks/README.md lists the known tables")


def _public_tables(name: str, rows: Sequence[Mapping[str, str]]) -> Iterator[LossTable]:
    """One job for each model of the table; its longest runs are the full length."""
    models: dict[tuple[str, ...], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        models[tuple(row.get(column, "") for column in ("N", "h", "numl", "numh"))].append(row)
    for model, runs in sorted(models.items(), key=lambda one: float(one[0][0])):
        # Its learning rates are written with three or four digits, for the same grid.
        annealed = {
            ((float(f"{float(r['lr']):.3g}"), float(r["bs"])), int(float(r["D"]))): (float(r["smooth loss"]),)
            for r in runs
            if math.isfinite(float(r["smooth loss"]))
        }
        annealed |= _between_batch_sizes(annealed)
        yield _table(f"{name} {float(model[0]) / 1e6:.0f}M", (LEARNING_RATE, BATCH), annealed)


def _between_batch_sizes(annealed: Mapping[tuple[Setting, int], tuple[float, ...]]) -> dict[Any, tuple[float, ...]]:
    """Losses of settings that lack a length, linear in the logarithm of the batch size between their neighbours.

    The grids of the public table have other batch sizes at some lengths (512 and 1,024 without 736).
    """
    filled = {}
    for (rate, batch), length in itertools.product(
        sorted({setting for setting, _ in annealed}), sorted({length for _, length in annealed})
    ):
        if ((rate, batch), length) in annealed:
            continue
        known = [b for (r, b), d in annealed if r == rate and d == length]
        below, above = (
            max((b for b in known if b < batch), default=None),
            min((b for b in known if b > batch), default=None),
        )
        if below is None or above is None:
            continue
        share = math.log(batch / below) / math.log(above / below)
        low, high = annealed[(rate, below), length][0], annealed[(rate, above), length][0]
        filled[(rate, batch), length] = (low + share * (high - low),)
    return filled


def _pilot(name: str, rows: Sequence[Mapping[str, str]]) -> LossTable:
    annealed = {
        ((float(r["learning_rate"]), float(r["batch_rows"])), round(float(r["share_of_length"]) * 1_000_000)): (
            float(r["holdout_loss"]),
        )
        for r in rows
        if r["holdout_loss"]
    }
    return _table(name, (LEARNING_RATE, BATCH), annealed)


_THIRD_SETTINGS = {"beta2": "training.beta2", "masking_rate": "objective.masked_lm.masking_rate"}
_SHARES = {f"annealed_1_{part}": 1 / part for part in (16, 8, 4, 2, 1)}


def _ground_truth(name: str, rows: Sequence[Mapping[str, str]]) -> LossTable:
    """A table of tests/benchmarks/ground_truth: seeds, branches, and the trunk at 32 points."""
    third = next(column for column in _THIRD_SETTINGS if column in rows[0])
    full = max(int(row["trunk_tokens"]) for row in rows)
    annealed: dict[tuple[Setting, int], tuple[float, ...]] = {}
    on_the_way: dict[tuple[Setting, int], float] = {}
    for row in sorted(rows, key=lambda one: int(one["seed"])):
        setting = (float(row["learning_rate"]), float(row["batch_rows"]), float(row[third]))
        for column, share in _SHARES.items():
            # A diverged training never came there.
            loss = float(row[column]) if row[column] else math.inf
            annealed[setting, round(share * full)] = (*annealed.get((setting, round(share * full)), ()), loss)
        for point in range(1, 33):
            loss = float(row[f"trunk_{point}_32"]) if row[f"trunk_{point}_32"] else math.inf
            on_the_way.setdefault((setting, point * full // 32), loss)
    table = _table(name, (LEARNING_RATE, BATCH, _THIRD_SETTINGS[third]), annealed)
    return replace(table, on_the_way=on_the_way)


def _table(name: str, paths: Sequence[str], annealed: Mapping[tuple[Setting, int], tuple[float, ...]]) -> LossTable:
    lengths = tuple(sorted({length for _, length in annealed}))
    settings = {setting for setting, _ in annealed if all((setting, length) in annealed for length in lengths)}
    axes = {path: tuple(sorted({setting[i] for setting in settings})) for i, path in enumerate(paths)}
    return LossTable(name, axes, lengths, annealed, {})
