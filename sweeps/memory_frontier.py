"""What fits in memory: predicted before a trial starts, and learnt from every trial that ran out.

A trial that ran out of memory rules out everything that asks for at least as much: the same shape with the same or a
larger micro-batch and masking rate. Lists only what is minimal, so it stays small.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from core.run_config import RunConfig
from data_pipeline.settings import format_bytes
from sweeps.trial_records import MemoryVerdict, TrialRecord

Demand = tuple[float, float]
"""Micro-batch and masking rate: the memory of one shape grows with both.

A batch that takes several micro-batches also holds their gradient meanwhile, which counts as half a row: more than the
same micro-batch in one go, less than one row more.
"""


@dataclass(frozen=True)
class Refusal:
    """Why a configuration is not launched."""

    verdict: MemoryVerdict
    reason: str


def shape_of(run: RunConfig) -> str:
    """Everything but the demand that memory depends on, as text: equal text, comparable demands."""
    training = run.training
    parts = (
        run.model.model_dump_json(exclude={"dropout", "rotary_base", "norm_epsilon"}),
        training.precision,
        training.activation_checkpointing,
        training.compile,
        training.clip is None,
        run.model.dropout > 0,
    )
    return repr(parts)


def micro_batch_of(run: RunConfig, num_workers: int) -> int | None:
    """Rows that one worker really holds at once; None for `auto`, which always fits itself to the memory."""
    asked = run.training.micro_batch_size
    return None if asked == "auto" else min(asked, -(-run.training.batch_size // num_workers))


def demand_of(run: RunConfig, num_workers: int) -> Demand | None:
    """Position of a run on the axes of its shape; None for `auto`."""
    micro_batch = micro_batch_of(run, num_workers)
    if micro_batch is None:
        return None
    accumulates = micro_batch * num_workers < run.training.batch_size
    return (micro_batch + accumulates / 2, run.objective.masking_rate or 1.0)


@dataclass
class MemoryFrontier:
    """The border between what fits in the memory of one worker and what does not."""

    limit_bytes: int
    num_workers: int
    predict: Callable[[RunConfig], int | None]
    """Peak bytes of a run, predicted; None where nothing is to be predicted."""
    _ran_out: dict[str, list[tuple[Demand, str]]] = field(default_factory=dict)
    """Shape to its minimal demands that ran out of memory, each with the trial's name."""

    def restore(self, records: Iterable[TrialRecord], run_of: Callable[[TrialRecord], RunConfig]) -> None:
        """Take over what earlier trials learnt."""
        for record in records:
            if record.memory_verdict == "ran out of memory":
                self.learn_shortage(run_of(record), record.name)

    def learn_shortage(self, run: RunConfig, trial_name: str) -> None:
        """A trial ran out of memory: nothing of its shape that asks for as much or more is launched again."""
        demand = demand_of(run, self.num_workers)
        if demand is None:
            return
        known = self._ran_out.setdefault(shape_of(run), [])
        if not any(_asks_as_much(demand, other) for other, _ in known):
            known[:] = [(other, name) for other, name in known if not _asks_as_much(other, demand)]
            known.append((demand, trial_name))

    def refusal(self, run: RunConfig, *, trust_prediction: bool = True) -> Refusal | None:
        """Why a run must not be launched; None if it may."""
        demand = demand_of(run, self.num_workers)
        if demand is None:
            return None
        for other, trial_name in self._ran_out.get(shape_of(run), ()):
            if _asks_as_much(demand, other):
                return Refusal(
                    "skipped by dominance",
                    f"micro-batch {int(demand[0])} asks for at least as much memory as {trial_name} (micro-batch "
                    f"{int(other[0])}), which ran out of {format_bytes(self.limit_bytes)}",
                )
        predicted = self.predict(run)
        if trust_prediction and predicted is not None and predicted > self.limit_bytes:
            return Refusal(
                "refused by prediction",
                f"micro-batch {int(demand[0])} needs {format_bytes(predicted)} (predicted) of "
                f"{format_bytes(self.limit_bytes)}",
            )
        return None


def _asks_as_much(demand: Demand, other: Demand) -> bool:
    return all(mine >= theirs for mine, theirs in zip(demand, other, strict=True))
