"""Drives a searcher as Tune does, with ends of trials that are told instead of trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.memory.out_of_memory import OomFacts
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from sweeps.early_stopping.rungs import Rungs
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord, TrialSize, TrialStore
from sweeps.search.ledger import Ledger
from sweeps.search.sweep_budget import SweepBudget
from sweeps.search.sweep_searcher import SweepSearcher
from sweeps.settings.sweep_config import SweepConfig

TOKENS = 30_000
RUNG = 10_000
WORST_LOSS = 7.0

End = Callable[[TrialRecord], tuple[Outcome, float | None]]
"""How a trial ends, and with which holdout loss."""


class DrivenSweep:
    """A sweep's searcher, ledger and frontier on a folder; made again on the same folder, it goes on.

    Args:
        limit_bytes: Of memory; a run takes 50 bytes a row of its micro-batch.
    """

    def __init__(self, folder: Path, sweep: SweepConfig, *, limit_bytes: int = 10**9, **budget: Any) -> None:
        self.sweep = sweep
        self.frontier = MemoryFrontier(limit_bytes, num_workers=1, predict=predicted_bytes, source="here")
        self.scheduler = TokenScheduler(Rungs((), 3))
        self.ledger = Ledger(
            TrialStore(folder / "trials"),
            frontier=self.frontier,
            scheduler=self.scheduler,
            run_of=lambda record: sweep.run_config(record.settings),
            rungs=(RUNG,),
            size_of=lambda _: TrialSize(flops_per_token=2.0),
        )
        for record in self.ledger.records.values():
            self.frontier.learn_trial(record, sweep.run_config(record.settings))
        self.searcher = SweepSearcher(
            sweep,
            self.ledger,
            self.frontier,
            worst_loss=WORST_LOSS,
            trial_config=lambda record, _: {"number": record.number},
            largest_micro_batch=lambda _, num_bytes: num_bytes // 50,
            budget=SweepBudget(sweep.budget, **{"elapsed_s": lambda: 0.0} | budget),
        )

    @property
    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        return list(self.ledger.records.values())

    def start(self) -> TrialRecord | None:
        """The next trial; None when there is none now."""
        config = self.searcher.suggest(f"tune-{len(self.records)}")
        if config is None or config == "FINISHED":
            return None
        number = config["number"]
        self.tune_ids = getattr(self, "tune_ids", {}) | {number: f"tune-{len(self.records) - 1}"}
        return self.ledger.records[number]

    def end(self, record: TrialRecord, outcome: Outcome, loss: float | None) -> None:
        """The trial ends."""
        if outcome is Outcome.STOPPED:
            self.ledger.report(record.number, report(RUNG + 1, loss))
            self.scheduler.stopped[record.number] = "not among the best"
            result: dict[str, Any] | None = None
        elif outcome is Outcome.INTERRUPTED:
            result = None
        else:
            if outcome is Outcome.COMPLETED:
                self.ledger.report(record.number, report(RUNG + 1, None if loss is None else loss + 1))
                self.ledger.report(record.number, report(TOKENS, loss))
            result = {
                "outcome": str(outcome),
                "reason": "as told",
                "interruptions": 0,
                "end": _end(record, outcome, loss),
            }
        self.searcher.on_trial_complete(self.tune_ids[record.number], result)

    def run(self, end: End, *, at_most: int = 10**6) -> list[TrialRecord]:
        """Start and end trials one after another; those that were started."""
        started = []
        while len(started) < at_most and (record := self.start()) is not None:
            self.end(record, *end(record))
            started.append(self.ledger.records[record.number])
        return started


def predicted_bytes(run: RunConfig) -> int:
    """50 bytes a row."""
    asked = run.training.micro_batch_size
    assert isinstance(asked, int)
    return 50 * min(asked, run.training.batch_size)


def report(tokens: int, loss: float | None) -> dict[str, float]:
    """A trial's report, with an evaluation where a loss is given."""
    values = {"tokens": float(tokens), "training_s": tokens / 1000, "train/tokens_per_s": 1000.0}
    return values if loss is None else values | {LOSS: loss}


def _end(record: TrialRecord, outcome: Outcome, loss: float | None) -> RunEnd:
    ran_out = outcome is Outcome.INFEASIBLE
    facts = OomFacts(kind="device", error_type="torch.OutOfMemoryError", message="", phase="backward")
    asked = record.micro_batch_size_asked
    return RunEnd(
        outcome=outcome.lower(),  # type: ignore[arg-type]
        reason="as told",
        metrics={} if loss is None else {LOSS: loss},
        tokens=TOKENS if outcome is Outcome.COMPLETED else 0,
        micro_batch_size_used=asked if isinstance(asked, int) else None,
        peak_memory_bytes=None,
        oom=facts if ran_out else None,
    )
