"""The ledger turns the events of Tune into trial records; it records each event once."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, Literal

from core.memory.memory_reports import MicroBatchSpeed
from core.memory.out_of_memory import OomFacts
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from sweeps.analysis.space_widening import Widening
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, Refusal
from sweeps.memory_knowledge.memory_observations import MemoryObservation
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import LOG_FILE
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import (
    EVALUATED,
    LOSS,
    ChosenBy,
    MemoryVerdict,
    RefusedProposal,
    TrialRecord,
    TrialSize,
    TrialStore,
)
from sweeps.settings.metric_config import BY_LOSS, Metric
from sweeps.settings.setting_paths import MICRO_BATCH

HOPELESS_AFTER = 3
"""Trials in a row that fail before they train, after which no trial starts."""

Listener = Callable[[TrialEvent, TrialRecord, dict[str, float] | None], None]
"""Called with the event, the record, and the report if the event is one."""


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger:
    """All trials of one sweep, in memory and in their store."""

    def __init__(
        self,
        store: TrialStore,
        *,
        frontier: MemoryFrontier,
        scheduler: TokenScheduler,
        run_of: Callable[[TrialRecord], RunConfig],
        rungs: tuple[int, ...],
        run_to_end: frozenset[int] = frozenset(),
        remember: Callable[[list[MemoryObservation]], None] = lambda _: None,
        size_of: Callable[[RunConfig], TrialSize] = lambda _: TrialSize(),
        ranked_by: Metric = BY_LOSS,
    ) -> None:
        """
        Args:
            size_of: Parameters and operations of a run.
            rungs: Token counts at which the holdout loss of a report is recorded.
            run_to_end: Drawn numbers of trials that train to the end; the next trial replaces an infeasible one.
            ranked_by: Metric that ranks the trials.
            remember: Stores the memory observations of a trial for later sweeps.
        """
        self.records = {record.number: record for record in store.load_all()}
        self.refused = store.load_refusals()
        self.widenings = [Widening.model_validate(one) for one in store.load_widenings()]
        self.listeners: list[Listener] = []
        self.is_halted = False
        """True: the machine has failed, and records that the disk refuses are kept in memory alone."""
        # Cached because every event asks for them, and most sweeps have none.
        self._twins = {record.number for record in self.records.values() if record.twin_of is not None}
        self._has_broken = any(map(_broke_at_once, self.records.values()))
        self._store, self._frontier, self._scheduler = store, frontier, scheduler
        self._run_of, self._rungs, self._remember = run_of, rungs, remember
        self._size_of, self._ranked_by = size_of, ranked_by
        self._run_to_end = run_to_end
        self._stored_tokens: dict[int, float] = {}
        """Trial number to the tokens of its last report in the store."""
        self._stages: dict[int, float] = {}
        """Trial number to the stage of its last report."""

    @property
    def twins(self) -> list[TrialRecord]:
        """Trials with the loss of another trial, not trained themselves; by number."""
        return [self.records[number] for number in sorted(self._twins)]

    def open(self, settings: dict[str, Any], chosen_by: ChosenBy) -> TrialRecord:
        """A new trial with the next number."""
        number = max(self.records, default=0) + 1
        # Repeats compare at their end, and a stopped one would have no loss there.
        runs_to_end = chosen_by in (ChosenBy.REPEAT, ChosenBy.PREDICTED) or self._is_to_run_to_the_end(number)
        record = TrialRecord(
            number=number,
            settings=settings,
            chosen_by=chosen_by,
            run_to_end=runs_to_end,
            ranked_by=self._ranked_by,
        )
        run = self._run_of(record)
        record = record.model_copy(
            update={
                "micro_batch_size_asked": run.training.micro_batch_size,
                "memory_limit_bytes": self._frontier.limit_bytes,
                "predicted_peak_memory_bytes": self._frontier.predicted_bytes(run),
                **self._size_of(run)._asdict(),
            }
        )
        return self._keep(record)

    def open_twin(self, settings: dict[str, Any], of: TrialRecord, speed: MicroBatchSpeed) -> TrialRecord:
        """A trial whose settings differ from another's only in the micro-batch. It takes the loss of the other trial.

        Args:
            speed: Measured speed of its micro-batch.
        """
        record = self.open(settings, of.chosen_by)
        seen = self._run_of(record)
        tokens_per_row = seen.model.sequence_length * self._frontier.rows_filled / 100
        rate = None if speed.rows_per_s is None else speed.rows_per_s * tokens_per_row * self._frontier.num_workers
        record = self._change(
            record.number,
            run_to_end=False,
            twin_of=of.number,
            tokens_per_s=rate,
            peak_memory_bytes=speed.peak_bytes,
            micro_batch_size_used=speed.rows,
        )
        self._settle_twins(self.records[of.number])
        return self.records[record.number]

    def start(self, number: int, *, micro_batch_size: int | None) -> TrialRecord:
        """Record that Tune starts the trial, or promotes it after a pause.

        Args:
            micro_batch_size: First micro-batch of one worker; None: the worker chooses it.
        """
        record = self.records[number]
        size = record.micro_batch_size_used or micro_batch_size
        event = TrialEvent.STARTED if record.paused_at is None else TrialEvent.PROMOTED
        record = self._change(number, started_at=record.started_at or now(), micro_batch_size_used=size, paused_at=None)
        self._say(event, record)
        return record

    def train_in_full(self, record: TrialRecord) -> TrialRecord:
        """Record that a paused trial is to be trained to the end."""
        return self._change(record.number, run_to_end=True)

    def report(self, number: int, report: dict[str, float]) -> None:
        """Record a report of a running trial."""
        record = self.records[number]
        # After an interruption a trial repeats tokens that it has reported; the reports are equal and count once.
        if report["tokens"] <= self._tokens_stored(record):
            return
        # Before the record: a report that the disk refuses, or that the driver does not live to store, is repeated by
        # the resumed trial.
        self._store.append_report(record, report)
        self._stored_tokens[number] = report["tokens"]
        if report["tokens"] > record.tokens or not record.tokens:
            record = self._reported(record, report)
        self._say(TrialEvent.REPORT, record, report)

    def _tokens_stored(self, record: TrialRecord) -> float:
        if record.number not in self._stored_tokens:
            stored = (report["tokens"] for report in self._store.reports(record))
            self._stored_tokens[record.number] = max(stored, default=-1.0)
        return self._stored_tokens[record.number]

    def _reported(self, record: TrialRecord, report: dict[str, float]) -> TrialRecord:
        """The record changed by a report of tokens beyond its own."""
        number = record.number
        changes: dict[str, Any] = {
            "tokens": int(report["tokens"]),
            "training_s": report.get("training_s", record.training_s),
            "tokens_per_s": report.get("train/tokens_per_s", record.tokens_per_s),
            **self._shrunk(record, report),
            "peak_memory_bytes": int(report["memory/peak_bytes"]) if report.get("memory/peak_bytes") else None,
        }
        loss = report.get(LOSS)
        if loss is not None:
            changes["metrics"] = {name: value for name, value in report.items() if name.startswith(EVALUATED)}
            changes["best_loss"] = loss if record.best_loss is None else min(loss, record.best_loss)
            reached = [rung for rung in self._rungs if record.tokens < rung <= report["tokens"]]
            changes["rung_losses"] = record.rung_losses | dict.fromkeys(reached, loss)
        events_before = record.out_of_memory_events
        record = self._change(number, **{name: value for name, value in changes.items() if value is not None})
        was_predicted = (record.predicted_peak_memory_bytes or 0) > self._frontier.limit_bytes
        if record.out_of_memory_events > events_before and was_predicted:
            # The prediction rules out a neighbour as the cause, so the next proposal need not wait for the trial's end.
            self._learn(record)
        return record

    def refuse(self, record: TrialRecord, refusal: Refusal) -> None:
        """Record a trial of `start_with` as infeasible before it starts."""
        record = self._change(
            record.number,
            outcome=Outcome.INFEASIBLE,
            memory_verdict=refusal.verdict,
            reason=f"{refusal.verdict}: {refusal.reason}",
            started_at=now(),
            ended_at=now(),
        )
        self._say(TrialEvent.ENDED, record)

    def refuse_proposal(
        self, settings: dict[str, Any], refusal: Refusal, *, micro_batch_size: int | Literal["auto"]
    ) -> None:
        """Record a proposal that memory or a rule of its settings ruled out."""
        refused = RefusedProposal(
            settings=settings,
            verdict=refusal.verdict,
            reason=refusal.reason,
            micro_batch_size=None if micro_batch_size == "auto" else micro_batch_size,
            predicted_peak_memory_bytes=refusal.predicted_bytes,
            memory_limit_bytes=self._frontier.limit_bytes,
        )
        self.refused.append(refused)
        self._store.append_refusal(refused)

    def cut_off(self, number: int, reason: str) -> None:
        """Note the reason before a running trial is stopped."""
        self._scheduler.stopped[number] = reason

    def settle(
        self, number: int, result: dict[str, Any] | None, *, lost: bool = False, reason: str = ""
    ) -> TrialRecord:
        """Record the end of a trial, or its pause at a rung, from Tune's last result; the first call decides.

        Args:
            lost: The process of its lane was lost.
            reason: Why it was interrupted, if that is known.
        """
        record = self.records[number]
        if record.ended_at:
            return record
        if result and result.get("paused_at"):
            return self._pause(record, result)
        changes: dict[str, Any] = {"ended_at": now()}
        end: RunEnd | None = (result or {}).get("end")
        if result and result.get("outcome"):
            changes |= {
                "outcome": Outcome(result["outcome"]),
                "reason": result["reason"],
                "interruptions": record.interruptions + result["interruptions"],
            }
        elif number in self._scheduler.stopped:
            changes |= {"outcome": Outcome.STOPPED, "reason": self._scheduler.stopped[number]}
        else:
            if lost:
                reason = f"the process of the lane was lost; see {LOG_FILE}"
            reason = reason or "the sweep was interrupted before the trial ended"
            changes |= {"outcome": Outcome.INTERRUPTED, "reason": reason}
        if end is not None:
            changes |= {
                "metrics": end.metrics or record.metrics,
                "tokens": end.tokens,
                "micro_batch_size_used": end.micro_batch_size_used,
                "peak_memory_bytes": end.peak_memory_bytes,
            }
            changes |= _out_of_memory(end, record)
        if changes["outcome"] is Outcome.INFEASIBLE:
            verdict = MemoryVerdict.RAN_OUT
            changes |= {"memory_verdict": verdict, "reason": f"{verdict}: {changes['reason']}"}
        record = self._change(number, **changes)
        if record.predicted_peak_memory_bytes is None and record.micro_batch_size_used:
            used = self._run_of(record).with_overrides({MICRO_BATCH: record.micro_batch_size_used})
            record = self._change(number, predicted_peak_memory_bytes=self._frontier.predict(used))
        self._learn(record)
        self._say(TrialEvent.ENDED, record)
        self._settle_twins(record)
        return record

    def stop_paused(self, number: int, reason: str) -> TrialRecord:
        """Record a paused trial as stopped: it will not be promoted."""
        record = self._change(number, outcome=Outcome.STOPPED, reason=reason, paused_at=None, ended_at=now())
        self._learn(record)
        self._say(TrialEvent.ENDED, record)
        self._settle_twins(record)
        return record

    def _settle_twins(self, record: TrialRecord) -> None:
        """Give the twins of an ended trial its outcome."""
        if not record.ended_at or not record.is_done:
            return
        for twin in [one for one in self.twins if one.twin_of == record.number and not one.ended_at]:
            reason = (
                f"not trained: {record.name} differs only in the micro-batch, which changes speed and memory only "
                f"({twin.micro_batch_size_used} rows measured in a few passes). {record.reason}"
            )
            changes = {name: getattr(record, name) for name in ("outcome", "metrics", "best_loss", "rung_losses")}
            twin = self._change(twin.number, **changes, reason=reason, started_at=now(), ended_at=now())
            self._say(TrialEvent.ENDED, twin)

    def _pause(self, record: TrialRecord, result: dict[str, Any]) -> TrialRecord:
        """Record the pause of a trial at a rung, with the result of its branch."""
        rung, end = result["paused_at"], result["end"]
        if rung in record.rung_losses:
            return record  # The pause was recorded before.
        loss = end.metrics[LOSS]
        record = self._change(
            record.number,
            metrics=end.metrics,
            best_loss=loss if record.best_loss is None else min(loss, record.best_loss),
            rung_losses=record.rung_losses | {rung: loss},
            paused_at=rung,
            tokens=end.tokens,
            branch_tokens=record.branch_tokens + end.branch.tokens,
            branch_s=record.branch_s + end.branch.training_s,
            interruptions=record.interruptions + result["interruptions"],
            micro_batch_size_used=end.micro_batch_size_used,
            peak_memory_bytes=max(end.peak_memory_bytes or 0, record.peak_memory_bytes or 0) or None,
            **_out_of_memory(end, record),
        )
        self._say(TrialEvent.PAUSED, record)
        return record

    def _is_to_run_to_the_end(self, number: int) -> bool:
        due = sum(drawn <= number for drawn in self._run_to_end)
        drawn = (record for record in self.records.values() if record.run_to_end and not record.is_repeat)
        return sum(record.outcome is not Outcome.INFEASIBLE for record in drawn) < due

    def widen(self, widening: Widening) -> None:
        """Record a widening of the search space."""
        self.widenings.append(widening)
        self._store.append_widening(widening)

    def unfinished(self) -> list[TrialRecord]:
        """Trials that a resumed sweep runs first, with the same numbers."""
        return [record for record in self.records.values() if not record.is_done and record.twin_of is None]

    def is_hopeless(self) -> bool:
        """Whether the last trials all failed before they trained, so the fault is not in their settings."""
        if not self._has_broken:
            return False
        # Failures before a `--retry` are those whose cause the user takes to be gone.
        since = max(record.retried_at for record in self.records.values())
        ended = sorted((r for r in self.records.values() if r.ended_at > since), key=lambda record: record.ended_at)
        last = ended[-HOPELESS_AFTER:]
        return len(last) == HOPELESS_AFTER and all(map(_broke_at_once, last))

    def reopen(self, record: TrialRecord) -> TrialRecord:
        """Clear the end of an interrupted trial, so that it runs again."""
        return self._change(record.number, outcome=None, reason="", ended_at="")

    def _learn(self, record: TrialRecord) -> None:
        """Learn the memory observations of a trial, for the next proposal and for later sweeps."""
        learnt = self._frontier.learn_trial(record, self._run_of(record))
        if learnt:
            with suppress(OSError) if self.is_halted else nullcontext():
                self._remember(learnt)

    def _shrunk(self, record: TrialRecord, report: dict[str, float]) -> dict[str, Any]:
        """Changes by the micro-batch of a report: the only sign of out of memory in a trial that is stopped early."""
        before, now_used = record.micro_batch_size_used, int(report.get("micro_batch_size", 0))
        stage = report.get("stage", 0.0)
        is_of_a_new_stage = stage != self._stages.get(record.number, 0.0)
        self._stages[record.number] = stage
        if not now_used:
            return {}
        if before is None or now_used >= before or is_of_a_new_stage:  # Each stage has a micro-batch of its own.
            return {"micro_batch_size_used": now_used}
        return {
            "micro_batch_size_used": now_used,
            "out_of_memory_events": record.out_of_memory_events + 1,
            "out_of_memory_micro_batches": (*record.out_of_memory_micro_batches, before),
            "memory_verdict": MemoryVerdict.SURVIVED,
        }

    def _change(self, number: int, **changes: Any) -> TrialRecord:
        return self._keep(self.records[number].model_copy(update=changes))

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self.records[record.number] = record
        if record.twin_of is not None:
            self._twins.add(record.number)
        self._has_broken = self._has_broken or _broke_at_once(record)
        with suppress(OSError) if self.is_halted else nullcontext():
            self._store.save(record)
        return record

    def _say(self, event: TrialEvent, record: TrialRecord, report: dict[str, float] | None = None) -> None:
        for listener in self.listeners:
            with suppress(OSError) if self.is_halted else nullcontext():
                listener(event, record, report)


def _broke_at_once(record: TrialRecord) -> bool:
    return record.outcome in (Outcome.FAILED, Outcome.INTERRUPTED) and record.tokens == 0


_PROPERTIES_OF_THE_RUN = ("device", "host")
"""Kinds of out of memory that would recur. A neighbour may cause that of a node, and a suspected one may be none."""


def _out_of_memory(end: RunEnd, record: TrialRecord) -> dict[str, Any]:
    """The number of times that a run ran out of memory, and the micro-batches known not to fit."""
    survived = end.oom_events
    last = [] if end.oom is None or end.micro_batch_size_used is None else [(end.micro_batch_size_used, end.oom)]
    # An event that a neighbour caused is no evidence on the run's own fit; reports cannot show the cause.
    others = {one.size for one in survived if one.is_neighbours}
    sizes = [size for size in record.out_of_memory_micro_batches if size not in others]
    sizes += [one.size for one in survived if _is_about_training(one.facts) and not one.is_neighbours]
    # The cause that ended a run would end it again, also in an evaluation.
    sizes += [size for size, facts in last if facts.kind in _PROPERTIES_OF_THE_RUN]
    events = max(record.out_of_memory_events, len(survived)) + len(last)
    found: dict[str, Any] = {
        "out_of_memory_events": events,
        "out_of_memory_micro_batches": tuple(dict.fromkeys(sizes)),
    }
    return found | ({"memory_verdict": MemoryVerdict.SURVIVED} if events else {})


def _is_about_training(facts: OomFacts) -> bool:
    return facts.kind in _PROPERTIES_OF_THE_RUN and facts.phase not in ("evaluation", "checkpoint")
