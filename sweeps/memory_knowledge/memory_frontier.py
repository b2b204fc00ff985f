"""What fits in memory: predicted before a trial starts, and learnt from every trial that ran or ran out.

The prediction comes first. What it may reach, the capacity, starts at the limit and is learnt: a trial that ran out at
a predicted size lowers it below that size, a trial that ran at one raises it to that size. It is one number
for all shapes, so that one shape that ran out warns of the others'. Dominance is the guard where the prediction is
wrong: nothing that asks for at least as much as what ran out is launched again.

On a CPU the limit is counted just as it is predicted, and the two agree. On CUDA they need not, and observations may
contradict each other. Of two of the same shape the later one counts: a neighbour on the device has come or gone. Two of
different shapes say nothing about a third one, only each about its own: then the prediction is known to be wrong about
one of the shapes, and not about the memory.
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
"""Ends of trials whose memory sufficed."""
SMALLEST_EXCESS = 1e-3
_SETTINGS_OF_FEED_FORWARD = {"moe": "mixture", "memory": "memory"}
"""Kind of feed-forward layer to the settings that only it has."""


@dataclass(frozen=True)
class Refusal:
    """Why a configuration is not launched."""

    verdict: MemoryVerdict
    reason: str
    predicted_bytes: int
    excess: float
    """By what share of the capacity the prediction is beyond it; above 0 in any case."""


@dataclass(frozen=True)
class Capacity:
    """The largest predicted size that is launched."""

    num_bytes: int
    learnt: str
    """Which trial moved it, in words; empty where it is the limit."""


def shape_of(run: RunConfig) -> str:
    """Everything of a run but the demand that its memory depends on, in words."""
    training = run.training
    model = run.model.model_dump(mode="json", exclude={"dropout", "rotary_base", "norm_epsilon"}, exclude_none=True)
    for kind, settings in _SETTINGS_OF_FEED_FORWARD.items():
        if run.model.feed_forward != kind:
            del model[settings]
    parts = {
        **model,
        "dropout": run.model.dropout > 0,
        "precision": training.precision,
        "activation_checkpointing": training.activation_checkpointing,
        "compile": training.compile,
        "clip": training.clip is not None,
        **({} if training.lora is None else {"lora": training.lora.model_dump(exclude={"alpha"})}),
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def micro_batch_of(run: RunConfig, num_workers: int) -> int | None:
    """Rows that one worker really holds at once; None for `auto`, which fits itself to the memory."""
    asked = run.training.micro_batch_size
    return None if asked == "auto" else min(asked, -(-run.training.batch_size // num_workers))


@dataclass
class MemoryFrontier:
    """The frontier between what fits in the memory of one worker and what does not."""

    limit_bytes: int
    num_workers: int
    predict: Callable[[RunConfig], int]
    """Peak bytes of a run whose micro-batch is a number."""
    surroundings: str = ""
    """What the memory of all runs depends on besides their settings, in words: vocabulary, workers, masks."""
    rows_filled: int = 100
    """Share of the corpus's rows that holds tokens, in percent."""
    first_margin: float = 0.0
    """Share of its prediction that a run must leave free until a trial has shown that it need not."""
    source: str = ""
    """Folder of the sweep, before the names of its trials."""
    _seen: dict[Hashable, MemoryObservation] = field(default_factory=dict)
    """The last one of those that say the same."""
    _standing_now: list[MemoryObservation] | None = None
    """None: to be found out anew."""
    _kinds: set[tuple[str, bool]] = field(default_factory=set)
    """Shapes of which something has fitted, or has run out."""
    _newest: tuple[str, str] = ("", "")
    """Age of the newest that is known."""
    _evidence_of: dict[str, tuple[list[MemoryObservation], list[MemoryObservation]]] = field(default_factory=dict)
    """By shape, until more is learnt."""

    @property
    def observations(self) -> tuple[MemoryObservation, ...]:
        """What is known, oldest first, as it was seen: in this sweep and in earlier ones."""
        return tuple(sorted(self._seen.values(), key=lambda one: one.age))

    def learn(self, observations: Iterable[MemoryObservation]) -> None:
        """Take over what was seen, here or in earlier sweeps."""
        for one in observations:
            known = self._seen.get(one.said)
            if known is not None and known.age >= one.age:
                continue
            self._seen[one.said] = one
            self._evidence_of.clear()
            # Each trial's end tells something: as a rule it is the newest and contradicts nothing.
            joins = known is None and one.age >= self._newest and (one.shape, not one.fits) not in self._kinds
            if self._standing_now is not None and joins:
                self._standing_now += self._said_of_this_limit(one)
            else:
                self._standing_now = None
            self._kinds.add((one.shape, one.fits))
            self._newest = max(self._newest, one.age)

    def learn_trial(self, record: TrialRecord, run: RunConfig) -> list[MemoryObservation]:
        """Learn from a trial: from each micro-batch that ran out, and from the one that ran to the end, if it ended.

        Returns:
            What was learnt.
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
        """Everything that a run's memory and speed depend on besides the demand, in words."""
        return self._shape(run)

    def predicted_bytes(self, run: RunConfig) -> int | None:
        """Predicted peak of a run; None where the micro-batch is `auto`."""
        return None if run.training.micro_batch_size == "auto" else self.predict(run)

    def refusal(self, run: RunConfig, *, trust_prediction: bool = True, may_shrink: bool = False) -> Refusal | None:
        """Why a run must not be launched; None if it may.

        Args:
            trust_prediction: False: refuse only for what was observed.
            may_shrink: Refuse only if a single row is too much, for a run that continues with a smaller micro-batch.
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
                reason += f" less a margin of {self.first_margin:.0%}, kept until a trial has shown it not to be needed"
            return Refusal(MemoryVerdict.REFUSED, reason, predicted, excess)
        return None

    def fitting(self, run: RunConfig, largest: Callable[[RunConfig, int], int], *, trust_prediction: bool) -> RunConfig:
        """The run with the micro-batch to launch it with: as asked, or the largest that fits where that does not.

        Args:
            largest: The largest micro-batch of a run that is predicted to need at most that number of bytes; 0 if none.
        """
        if self.refusal(run, trust_prediction=trust_prediction) is None:
            return run
        size = largest(run, self.capacity(run).num_bytes)
        while size > 1 and self.refusal(run.with_overrides({MICRO_BATCH: size})) is not None:
            size //= 2
        return run.with_overrides({MICRO_BATCH: max(1, size)})

    def capacity(self, run: RunConfig | None = None) -> Capacity:
        """The largest predicted size that is launched of a run's shape, or of one that nothing is known about."""
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
            capacity = Capacity(lowest.predicted_bytes - 1, f"{self._name(lowest)} ran out at a predicted {size}")
        return capacity

    def _evidence(self, shape: str) -> tuple[list[MemoryObservation], list[MemoryObservation]]:
        """What counts for a shape, fitted and ran out: its own observations, and others' that none contradicts."""
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
        """What the observations say of this limit, without those that a later one of their shape contradicts."""
        # Asked several times for each proposal, and changed once by each trial's end.
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
        """What an observation says of this limit and corpus, if it says anything."""
        seen = one.under(self.limit_bytes) if one.rows_filled == self.rows_filled else None
        return [] if seen is None else [seen]

    def _observation(self, run: RunConfig, *, fits: bool, trial: str = "", at: str = "") -> MemoryObservation:
        micro_batch = micro_batch_of(run, self.num_workers)
        assert micro_batch is not None, "an automatic size is made a number first"
        return MemoryObservation(
            shape=self._shape(run),
            micro_batch_size=micro_batch,
            accumulates=micro_batch * self.num_workers < run.training.batch_size,
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
    """Of two of the same shape, of which one fits and the other does not."""
    if (later.at, later.fits) < (earlier.at, earlier.fits):
        return False
    return later.asks_as_much(earlier) if later.fits else earlier.asks_as_much(later)
