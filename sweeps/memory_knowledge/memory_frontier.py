"""The memory frontier: the border between runs that fit and runs that do not.

It is predicted before a trial starts, and learnt from every trial that ran or ran out of memory. The capacity is the
largest predicted size that is launched. It starts at the limit: a trial that ran out of memory lowers it below its
predicted size, a trial that fitted raises it to its own. All shapes share one capacity, so a shape that runs out
warns of the others. Dominance guards against a wrong prediction: a run that needs at least as much as one that ran out
is not launched.

On a CPU the limit counts the predicted bytes, so limit and prediction agree. On CUDA they may differ, and observations
may contradict each other. Of two of one shape the later counts: a neighbour on the device came or left. Of two of
different shapes each counts for its own shape only, because the prediction is wrong for one of them.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import format_bytes
from sweeps.memory_knowledge.memory_observations import MemoryObservation
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import MemoryVerdict, TrialRecord
from sweeps.settings.setting_paths import MICRO_BATCH

_RAN = (Outcome.COMPLETED, Outcome.STOPPED, Outcome.DIVERGED)
"""Outcomes of trials that fitted."""
SMALLEST_EXCESS = 1e-3
_SETTINGS_OF_FEED_FORWARD = {"moe": "mixture", "memory": "memory"}
"""Kind of feed-forward layer to the settings of this kind only."""


@dataclass(frozen=True)
class Refusal:
    """The reason why a run is not launched."""

    verdict: MemoryVerdict
    reason: str
    predicted_bytes: int | None
    """None: the settings are no valid combination."""
    excess: float
    """Predicted bytes over the capacity, minus 1; `SMALLEST_EXCESS` at least. 1 without a prediction."""


@dataclass(frozen=True)
class Capacity:
    """The largest predicted size that is launched."""

    num_bytes: int
    learnt: str
    """The trial that moved it, in words; empty if it is the limit."""


def shape_of(run: RunConfig) -> str:
    """All settings that memory depends on, without the demand (micro-batch and masking rate), in words."""
    training = run.training
    unread = {"dropout", "rotary_base", "norm_epsilon"}
    model = run.model.in_standard_form().model_dump(mode="json", exclude=unread, exclude_none=True)
    for kind, settings in _SETTINGS_OF_FEED_FORWARD.items():
        if run.model.feed_forward != kind:
            model.pop(settings, None)
    parts = {
        **model,
        "dropout": run.model.dropout > 0,
        "precision": training.precision,
        "activation_checkpointing": training.activation_checkpointing,
        "compile": training.compile,
        "clip": training.clip is not None,
        **({} if training.optimizer == "adamw" else {"optimizer": training.optimizer}),
        **({} if training.lora is None else {"lora": training.lora.model_dump(exclude={"alpha"})}),
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def micro_batch_of(run: RunConfig, num_workers: int) -> int | None:
    """Rows that one worker holds at once; None for `auto`, which adapts to the memory."""
    asked = run.training.micro_batch_size
    return None if asked == "auto" else min(asked, -(-run.training.largest_batch_size // num_workers))


@dataclass
class MemoryFrontier:
    """The frontier between runs that fit in the memory of one worker and runs that do not."""

    limit_bytes: int
    num_workers: int
    predict: Callable[[RunConfig], int]
    """Peak bytes of a run whose micro-batch is a number."""
    surroundings: str = ""
    """Conditions of memory common to all runs, in words: vocabulary, workers, masks."""
    rows_filled: int = 100
    """Share of the corpus's rows that holds tokens, in percent."""
    first_margin: float = 0.0
    """Share of its prediction that a run must leave free until a trial proves the margin unnecessary."""
    source: str = ""
    """Folder of the sweep, the prefix of its trial names."""
    _seen: dict[Hashable, MemoryObservation] = field(default_factory=dict)
    """Content of an observation to the last one with it."""
    _standing_now: list[MemoryObservation] | None = None
    """Cache of `_standing`; None: to be computed."""
    _kinds: set[tuple[str, bool]] = field(default_factory=set)
    """Pairs of shape and `fits` among the observations."""
    _newest: tuple[str, str] = ("", "")
    """Age of the newest observation."""
    _evidence_of: dict[str, tuple[list[MemoryObservation], list[MemoryObservation]]] = field(default_factory=dict)
    """Cache of `_evidence` by shape, cleared by each new observation."""

    @property
    def observations(self) -> tuple[MemoryObservation, ...]:
        """Observations of this sweep and earlier ones, oldest first."""
        return tuple(sorted(self._seen.values(), key=lambda one: one.age))

    def learn(self, observations: Iterable[MemoryObservation]) -> None:
        """Add observations of this sweep or of earlier ones."""
        for one in observations:
            known = self._seen.get(one.said)
            if known is not None and known.age >= one.age:
                continue
            self._seen[one.said] = one
            self._evidence_of.clear()
            # Every trial adds one; it is usually the newest and contradicts none, so the cache can grow.
            joins = known is None and one.age >= self._newest and (one.shape, not one.fits) not in self._kinds
            if self._standing_now is not None and joins:
                self._standing_now += self._said_of_this_limit(one)
            else:
                self._standing_now = None
            self._kinds.add((one.shape, one.fits))
            self._newest = max(self._newest, one.age)

    def learn_trial(self, record: TrialRecord, run: RunConfig) -> list[MemoryObservation]:
        """Learn from each micro-batch of a trial that ran out of memory, and from the one that ran to the end.

        Returns:
            The new observations.
        """
        at = record.ended_at or record.started_at
        sizes = [(size, False) for size in record.out_of_memory_micro_batches]
        if record.outcome in _RAN and record.tokens and record.micro_batch_size_used:
            sizes.append((record.micro_batch_size_used, True))
        learnt = [
            self._observation(run.with_overrides({MICRO_BATCH: size}), fits=fits, trial=record.name, at=at)
            for size, fits in sizes
        ]
        self.learn(learnt)
        return learnt

    def shape(self, run: RunConfig) -> str:
        """All conditions of a run's memory and speed, without the demand, in words."""
        return self._shape(run)

    def predicted_bytes(self, run: RunConfig) -> int | None:
        """Predicted peak of a run; None if the micro-batch is `auto`."""
        return None if run.training.micro_batch_size == "auto" else self.predict(run)

    def refusal(self, run: RunConfig, *, trust_prediction: bool = True, may_shrink: bool = False) -> Refusal | None:
        """The reason not to launch a run; None if it may be launched.

        Args:
            trust_prediction: False: refuse only by observations.
            may_shrink: Refuse only if a single row does not fit, for a run that may shrink its micro-batch.
        """
        shrinks = may_shrink and run.training.on_oom == "shrink"
        is_free = shrinks or run.training.micro_batch_size == "auto"
        wanted = self._observation(run.with_overrides({MICRO_BATCH: 1}) if is_free else run, fits=True)
        fitted, ran_out = self._evidence(wanted.shape)
        if any(one.asks_as_much(wanted) for one in fitted):
            return None
        capacity = self._capacity(fitted, ran_out)
        rows, predicted = wanted.micro_batch_size, wanted.predicted_bytes
        excess = max(predicted / max(capacity.num_bytes, 1) - 1, SMALLEST_EXCESS)
        for one in ran_out:
            if wanted.asks_as_much(one):
                reason = (
                    f"micro-batch {rows} asks for at least as much memory as {self._name(one)} (micro-batch "
                    f"{one.micro_batch_size}), which ran out of {format_bytes(one.limit_bytes)}"
                )
                return Refusal(MemoryVerdict.SKIPPED, reason, predicted, excess)
        if trust_prediction and predicted > capacity.num_bytes:
            limit = format_bytes(self.limit_bytes)
            reason = f"micro-batch {rows} needs {format_bytes(predicted)} (predicted) of {limit}"
            if capacity.learnt:
                reason += f"; {capacity.learnt}"
            elif predicted <= self.limit_bytes:
                reason += f" less a margin of {self.first_margin:.0%}, kept until a trial proves it unnecessary"
            return Refusal(MemoryVerdict.REFUSED, reason, predicted, excess)
        return None

    def fitting(self, run: RunConfig, largest: Callable[[RunConfig, int], int], *, trust_prediction: bool) -> RunConfig:
        """The run with the micro-batch to launch: the one asked for if it fits, else the largest that fits.

        Args:
            largest: Largest micro-batch of a run within a number of bytes, by prediction; 0 if none.
        """
        if self.refusal(run, trust_prediction=trust_prediction) is None:
            return run
        size = largest(run, self.capacity(run).num_bytes)
        while size > 1 and self.refusal(run.with_overrides({MICRO_BATCH: size})) is not None:
            size //= 2
        return run.with_overrides({MICRO_BATCH: max(1, size)})

    def capacity(self, run: RunConfig | None = None) -> Capacity:
        """The largest predicted size that is launched, for a run's shape or for an unknown shape."""
        return self._capacity(*self._evidence("" if run is None else self._shape(run)))

    def _capacity(self, fitted: list[MemoryObservation], ran_out: list[MemoryObservation]) -> Capacity:
        capacity = Capacity(int(self.limit_bytes / (1 + self.first_margin)), "")
        highest = max(fitted, key=lambda one: one.predicted_bytes, default=None)
        if highest is not None and highest.predicted_bytes > capacity.num_bytes:
            size = format_bytes(highest.predicted_bytes)
            capacity = Capacity(highest.predicted_bytes, f"{self._name(highest)} ran at a predicted {size}")
        lowest = min(ran_out, key=lambda one: one.predicted_bytes, default=None)
        if lowest is not None and lowest.predicted_bytes <= capacity.num_bytes:
            size = format_bytes(lowest.predicted_bytes)
            capacity = Capacity(
                lowest.predicted_bytes - 1, f"{self._name(lowest)} ran out of memory at a predicted {size}"
            )
        return capacity

    def _evidence(self, shape: str) -> tuple[list[MemoryObservation], list[MemoryObservation]]:
        """Observations that count for a shape, fitted and ran out: its own, and uncontradicted ones of other shapes."""
        if shape not in self._evidence_of:
            self._evidence_of[shape] = self._find_evidence(shape)
        return self._evidence_of[shape]

    def _find_evidence(self, shape: str) -> tuple[list[MemoryObservation], list[MemoryObservation]]:
        standing = self._standing()
        highest = max((one.predicted_bytes for one in standing if one.fits), default=-1)
        lowest = min((one.predicted_bytes for one in standing if not one.fits), default=math.inf)
        fitted = [one for one in standing if one.fits and (one.shape == shape or one.predicted_bytes < lowest)]
        ran_out = [one for one in standing if not one.fits and (one.shape == shape or one.predicted_bytes > highest)]
        return fitted, ran_out

    def _standing(self) -> list[MemoryObservation]:
        """The observations under this limit, without those that a later one of their shape contradicts."""
        # Cached: each proposal asks several times, and only the end of a trial changes it.
        if self._standing_now is None:
            here = [seen for one in self.observations for seen in self._said_of_this_limit(one)]
            alike: dict[tuple[str, bool], list[MemoryObservation]] = {}
            for one in here:
                alike.setdefault((one.shape, one.fits), []).append(one)
            self._standing_now = [
                one
                for one in here
                if not any(_contradicts(other, one) for other in alike.get((one.shape, not one.fits), ()))
            ]
        return self._standing_now

    def _said_of_this_limit(self, one: MemoryObservation) -> list[MemoryObservation]:
        """An observation under this limit and corpus; empty if it does not apply."""
        seen = one.under(self.limit_bytes) if one.rows_filled == self.rows_filled else None
        return [] if seen is None else [seen]

    def _observation(self, run: RunConfig, *, fits: bool, trial: str = "", at: str = "") -> MemoryObservation:
        micro_batch = micro_batch_of(run, self.num_workers)
        assert micro_batch is not None, "the caller replaces `auto` by a number"
        return MemoryObservation(
            shape=self._shape(run),
            micro_batch_size=micro_batch,
            accumulates=micro_batch * self.num_workers < run.training.largest_batch_size,
            masking_rate=run.objective.masking_rate or 1.0,
            rows_filled=self.rows_filled,
            predicted_bytes=self.predict(run),
            limit_bytes=self.limit_bytes,
            fits=fits,
            trial=f"{self.source}/{trial}",
            at=at,
        )

    def _shape(self, run: RunConfig) -> str:
        return ", ".join(filter(None, (shape_of(run), self.surroundings)))

    def _name(self, seen: MemoryObservation) -> str:
        source, _, trial = seen.trial.rpartition("/")
        return trial if source == self.source else f"{trial} of {source}"


def _contradicts(later: MemoryObservation, earlier: MemoryObservation) -> bool:
    """Whether a later observation contradicts an earlier one of its shape; one of them fits, the other does not."""
    if (later.at, later.fits) < (earlier.at, earlier.fits):
        return False
    return later.asks_as_much(earlier) if later.fits else earlier.asks_as_much(later)
