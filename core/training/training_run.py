"""The training loop on one page. Independent of Ray and MLflow: data, workers and `report` are arguments."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core.distributed.collective_attempt import StopRequestedError, attempt_together
from core.distributed.workers import Workers, check_same_model
from core.memory.host_memory import within_device
from core.memory.malloc_tuning import freed_memory_stays
from core.memory.memory_limit import memory_limit
from core.memory.memory_reports import LimitBy, OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts
from core.memory_prediction.automatic_micro_batch import choose_micro_batch, worker_setup_of
from core.memory_prediction.peak_memory import predict_memory
from core.model_files.checkpoint import copy_from_first
from core.model_files.initial_weights import fresh_model, hash_of_base
from core.settings.cooldown_branch import Branch, Pause, branch_schedule
from core.settings.precision import allow_tf32, choose_precision
from core.settings.run_config import RunConfig
from core.settings.schedule import RunLength, learning_rate, run_length, with_warmup_share
from core.step.divergence import DivergenceWatch
from core.step.evaluation import Evaluation, Judge, holdout_source
from core.step.noise_scale import NoiseScale
from core.step.optimizer import build_optimizer, follow_batch
from core.step.optimizer_step import LossScale, OptimizerStep, StepOutOfMemory, StepResult
from core.step.step_profile import matmul_flops_per_s, model_flops_a_token
from core.training.memory_budget import MemoryBudget
from core.training.memory_proof import MemoryProof
from core.training.observation import observed
from core.training.progress_report import Progress, Report, Reporter
from core.training.run_checkpoints import RunCheckpoints
from core.training.run_checks import Beginning, check_fit, settings_that_count
from core.training.run_end import Outcome, RunEnd
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus

_FLOPS_ARE_COUNTED_AFTER_S = 2.0


def run_training(
    run: RunConfig,
    data: PreparedCorpus,
    *,
    workers: Workers,
    folder: Path,
    begins_with: Beginning | None = None,
    report: Report,
    evaluate_at_tokens: Sequence[int],
    memory_limit_bytes: int | None = None,
    memory_limit_by: LimitBy = "counting",
    checkpoint_every_s: float | None = 60.0,
    report_every_s: float = 1.0,
    pause: Pause | None = None,
    keep_trunk: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
    judge: Judge | None = None,
    judge_at_tokens: Sequence[int] = (),
) -> RunEnd:
    """Train one model until its tokens are used up, or something ends it earlier.

    Every worker calls it with the same arguments. It resumes from the newest complete checkpoint in `folder`, if any.

    Args:
        folder: Folder for checkpoints, the newest and the best; only rank 0 reads and writes it.
        begins_with: Checkpoint to begin with while `folder` has none; only rank 0 reads it.
        report: Receives metrics on rank 0 at every evaluation, and otherwise at most every `report_every_s`. Returning
            False stops the run.
        evaluate_at_tokens: The holdout is evaluated at the first step that reaches each of these, and at the end.
        memory_limit_bytes: Memory limit of each worker; exceeding it is an out-of-memory error. None: no limit.
        memory_limit_by: Mechanism of the limit on a CPU.
        checkpoint_every_s: Seconds between checkpoints, more if writing would take over 2 % of the time. None: only at
            the end.
        pause: The run ends as paused there, after a cooldown branch. A later call without it, or with a later pause,
            resumes the trunk. None, or a pause at or beyond the end: no pause.
        keep_trunk: Keep the checkpoint before the cooldown of `wsd`, from which a longer training can resume.
        is_stopped: Called before every micro-batch on every worker; True stops the run at once.
        judge: Gives further metrics at the end, at a pause, and at the evaluations of `judge_at_tokens`. None: none.
        judge_at_tokens: Some of `evaluate_at_tokens`.

    Returns:
        The end of the run. Running out of memory, divergence and a stop are outcomes, not exceptions.

    Raises:
        ValueError: The settings do not fit the data, or `folder` holds another run's checkpoint.
        RuntimeError: The workers differ, or another worker failed.
    """
    device = workers.device
    allow_tf32(device)
    memory_limit_bytes = within_device(memory_limit_bytes, device)
    precision = choose_precision(run.training.precision, device)
    matmul_rate = 0.0
    if workers.is_first:
        matmul_rate = observed("matmul rate", lambda: matmul_flops_per_s(device, precision.dtype), otherwise=0.0)
    check_fit(run, data)
    micro_batch_size = choose_micro_batch(run, data, workers, memory_limit_bytes=memory_limit_bytes)
    if run.model.class_ is not None and memory_limit_bytes is not None:
        # A class that cannot be traced is measured. That happens now, outside of the limit, and is kept.
        setup = worker_setup_of(data, workers)
        size = micro_batch_size
        while size > 0:  # Those that the run would shrink to.
            predict_memory(run, data.vocabulary.size, micro_batch_size=size, setup=setup)
            size //= 2
    # With a limit enforced by the kernel, freed memory kept by the process would count against it.
    keeps_freed_memory = device.type == "cpu" and memory_limit_by == "counting"
    with (
        memory_limit(memory_limit_bytes, device, by=memory_limit_by) as meter,
        freed_memory_stays() if keeps_freed_memory else nullcontext(),
    ):
        setup = worker_setup_of(data, workers)
        budget = MemoryBudget(run, data.vocabulary.size, setup, workers, meter, memory_limit_bytes)
        opened = attempt_together(
            lambda: _Run(run, data, workers, budget, micro_batch_size, folder, is_stopped, judge),
            workers,
            phase=None,
            bytes_in_use=budget.bytes_in_use,
        )
        if isinstance(opened, OomFacts):
            reason = budget.in_words(opened, micro_batch_size)
            return RunEnd("infeasible", reason, {}, 0, micro_batch_size, budget.largest_peak_bytes(), opened)
        opened.report_with(report, every_s=report_every_s, matmul_rate=matmul_rate)
        try:
            ended = opened.resume(begins_with)
            return ended or opened.train(evaluate_at_tokens, checkpoint_every_s, pause, keep_trunk, judge_at_tokens)
        except StopRequestedError:
            return opened.stopped()


class _Run:
    """State of one run: model, optimizer, data, progress and checkpoints."""

    def __init__(
        self,
        run: RunConfig,
        data: PreparedCorpus,
        workers: Workers,
        budget: MemoryBudget,
        micro_batch_size: int,
        folder: Path,
        is_stopped: Callable[[], bool],
        judge: Judge | None,
    ) -> None:
        training = run.training
        self.run = run
        self.data = data
        self.workers = workers
        self.budget = budget
        self.precision = choose_precision(training.precision, workers.device)
        self.length: RunLength = run_length(training, num_rows=data.train.num_rows, num_tokens=data.train.num_tokens)
        self.tokens_per_step = training.batch_size * data.train.num_tokens / data.train.num_rows
        self.scheduled = with_warmup_share(
            training, total_tokens=self.length.schedule_tokens, tokens_per_step=self.tokens_per_step
        )
        """The settings of the schedule, in shares of its length."""
        self.model = fresh_model(run, data, workers.device)
        self.base_hash = hash_of_base(run) if workers.is_first else None
        self.optimizer = build_optimizer(
            self.model,
            training,
            tokens_per_step=self.tokens_per_step,
            total_tokens=self.length.schedule_tokens,
            precision=self.precision,
        )

        def listen() -> None:
            if is_stopped():
                raise StopRequestedError

        self.step = OptimizerStep(
            self.model,
            self.optimizer,
            BatchSource(
                data.train, data.vocabulary, masking_rate=run.objective.masking_rate, seed=training.seed, shuffle=True
            ),
            workers,
            self.precision,
            batch_size=training.largest_batch_size,
            micro_batch_size=micro_batch_size,
            tokens_per_step=self.tokens_per_step,
            clip=training.clip,
            choose_smaller=budget.smaller if training.on_oom == "shrink" else None,
            bytes_in_use=budget.bytes_in_use,
            listen=listen,
            seed=training.seed,
        )
        self.evaluation = Evaluation(
            self.model,
            holdout_source(data, is_causal=run.model.is_causal),
            workers,
            self.precision,
            num_rows=self.step.micro_batch_size,
            shrinks=self.step.micro_batch.shrinks,
            listen=listen,
            judge=judge,
        )
        self.progress = Progress()
        self.trunk: Progress | None = None
        """While a branch is trained: progress of the trunk at the pause."""
        self.last: StepResult | None = None
        """Result of the last step."""
        self.noise = NoiseScale()
        self.divergence = DivergenceWatch(data.vocabulary.size)
        self.proof = MemoryProof(
            self.step,
            self.evaluation,
            budget,
            data,
            compiles=training.compile,
            grows=training.batch_schedule is not None,
        )
        self.asked_micro_batch = self.step.micro_batch_size
        self.checkpoints = RunCheckpoints(folder, self.model, self.optimizer, workers, self._state)

    def report_with(self, report: Report, *, every_s: float, matmul_rate: float) -> None:
        """Set the receiver of reports."""
        self.reporter = Reporter(report, every_s=every_s, matmul_rate=matmul_rate, profile=self.step.profile)

    def resume(self, beginning: Beginning | None) -> RunEnd | None:
        """Check that all workers hold the same model, then restore the newest checkpoint, if any.

        Args:
            beginning: Checkpoint to begin with if the folder holds none.

        Returns:
            The end of the run if restoring runs out of memory; otherwise None.
        """
        check_same_model(self.model, self._settings_text(), self.workers)
        read = attempt_together(
            lambda: self.checkpoints.read_newest(self.run, self.data, beginning), self.workers, phase="checkpoint"
        )
        if isinstance(read, OomFacts):
            return self._infeasible(read, self.step.micro_batch_size)
        saved = self.workers.all_values(read)[0]
        if saved:
            assert isinstance(saved, dict)
            self._restore(saved)
        return None

    def train(
        self,
        evaluate_at_tokens: Sequence[int],
        checkpoint_every_s: float | None,
        pause: Pause | None,
        keep_trunk: bool,
        judge_at_tokens: Sequence[int],
    ) -> RunEnd:
        """Run the training loop until the run ends or pauses."""
        while not self._is_over():
            self._follow_batch_schedule()
            if pause is not None and self.progress.tokens >= pause.at_tokens:
                return self._pause(pause)
            if keep_trunk and self._is_about_to_cool_down():
                self.checkpoints.write_trunk_together()
            before = self.progress
            result = self._advance(self._learning_rate)
            if isinstance(result, RunEnd):
                return result
            self.reporter.add(result, self.progress.training_s - before.training_s)
            if result.noise_pair is not None:
                self.noise = self.noise.with_measurement(*result.noise_pair)

            is_last = self._is_over()
            if pause is not None and self.progress.tokens >= pause.at_tokens and not is_last:
                continue  # The branch will evaluate and report.
            is_due = is_last or self._has_passed(evaluate_at_tokens, before)
            is_judged = is_last or self._has_passed(judge_at_tokens, before)
            metrics = self.evaluation.metrics(step=self.progress.step, is_judged=is_judged) if is_due else {}
            if isinstance(metrics, OomFacts):
                return self._infeasible(metrics, self.evaluation.num_rows)

            continues = self._publish(metrics, is_last=is_last, checkpoint_every_s=checkpoint_every_s)
            if not continues and not is_last:
                return self._end("stopped", f"stopped by the caller at {self.progress.tokens} tokens")
        done = f"trained on {self.progress.tokens:,} tokens in {self.progress.step:,} steps"
        return self._end("completed", done + self._survived_in_words())

    def stopped(self) -> RunEnd:
        """End of a run stopped between reports; progress since its last checkpoint is lost."""
        tokens = (self.trunk or self.progress).tokens
        return self._end("stopped", f"stopped by the caller after {tokens} tokens, before the next report")

    # Steps of the loop, in their order

    def _has_passed(self, points: Sequence[int], before: Progress) -> bool:
        """Whether the last step reached one of these token counts."""
        return any(before.tokens < max(point, 1) <= self.progress.tokens for point in points)

    def _is_over(self) -> bool:
        return self.length.is_reached(tokens=self.progress.tokens, step=self.progress.step)

    def _follow_batch_schedule(self) -> None:
        """Set the batch size of the next step, a function of the tokens alone, so that a resumed run has the same."""
        rows = self.run.training.batch_size_after(self.progress.tokens / self.length.tokens)
        now = rows * self.data.train.num_tokens / self.data.train.num_rows
        if now != self.tokens_per_step:
            follow_batch(self.optimizer, self.run.training, before=self.tokens_per_step, now=now)
        self.step.batch_size, self.tokens_per_step = rows, now

    def _advance(self, rate_of: Callable[[int], float]) -> StepResult | RunEnd:
        """Take one optimizer step and advance the progress; returns its result, or the end of the run."""
        before = self.progress
        started_at = time.perf_counter()
        result = self.step.take(step=before.step, position=before.position, learning_rate=rate_of)
        elapsed_s = time.perf_counter() - started_at
        if isinstance(result, StepOutOfMemory):
            return self._infeasible(result.facts, result.micro_batch_size)
        diverged = None if self._is_only_scaled_too_high(result) else self._verdict(result)
        if diverged is not None:
            return self._end("diverged", diverged)
        self.progress = before.after(result, num_rows=self.step.batch_size, elapsed_s=elapsed_s)
        self.last = result
        facts = self.proof.after_step(step=self.progress.step)
        return result if facts is None else self._infeasible(facts, self.evaluation.num_rows)

    def _pause(self, pause: Pause) -> RunEnd:
        """Checkpoint the trunk, then train and evaluate a cooldown branch from here."""
        trunk = self.trunk = self.progress
        self.checkpoints.write_together()
        values = self._trunk_values() if self.workers.is_first else {}
        schedule = branch_schedule(pause, begin_tokens=trunk.tokens, tokens_per_step=self.tokens_per_step)

        def rate_of(num_tokens: int) -> float:
            middle = self.progress.tokens + num_tokens / 2
            total = self.length.schedule_tokens
            return schedule.learning_rate(self.scheduled, tokens=middle, total_tokens=total)

        for _ in range(schedule.num_steps):
            result = self._advance(rate_of)
            if isinstance(result, RunEnd):
                return result
        metrics = self.evaluation.metrics(step=self.progress.step, is_judged=True)
        if isinstance(metrics, OomFacts):
            return self._infeasible(metrics, self.evaluation.num_rows)
        end = self.progress
        branch = Branch(metrics, end.tokens - trunk.tokens, end.training_s - trunk.training_s)
        if self.workers.is_first:
            self.reporter.send(values | branch.as_report())
        reason = f"paused at {trunk.tokens} tokens; a branch cooled down over {branch.tokens} tokens from there"
        return replace(self._end("paused", reason + self._survived_in_words()), metrics=metrics, branch=branch)

    def _is_about_to_cool_down(self) -> bool:
        """True before the first step that lies, even in part, in the cooldown."""
        training = self.run.training
        if training.schedule != "wsd" or training.cooldown == 0:
            return False
        begins_at = (1 - training.cooldown) * self.length.schedule_tokens
        # Half a token of tolerance: the sum of whole steps equals the boundary up to rounding.
        return self.progress.tokens < begins_at + 0.5 <= self.progress.tokens + self.tokens_per_step

    def _learning_rate(self, num_tokens: int) -> float:
        # Use the middle of the step: at its beginning the first warm-up step would have rate zero, at its end the last
        # cooldown step.
        middle = self.progress.tokens + num_tokens / 2
        return learning_rate(self.scheduled, tokens=middle, total_tokens=self.length.schedule_tokens)

    def _is_only_scaled_too_high(self, result: StepResult) -> bool:
        return not result.is_applied and math.isfinite(result.loss) and self.step.can_lower_loss_scale

    def _verdict(self, result: StepResult) -> str | None:
        return self.divergence.verdict(result, step=self.progress.step + 1)

    def _publish(self, metrics: dict[str, float], *, is_last: bool, checkpoint_every_s: float | None) -> bool:
        """Write best weights, report and write a checkpoint on rank 0, each when due.

        Running out of memory here costs a checkpoint, not the run.

        Returns:
            True to continue, False to stop; rank 0's answer on all workers.
        """
        is_best = False
        if metrics:
            self.progress, is_best = self.progress.evaluated(metrics)

        def publish() -> None:
            if not self.workers.is_first:
                return
            if is_best:
                self.checkpoints.write_best(metrics)
            continues = self._report(metrics)
            if is_last or not continues or self.checkpoints.is_due(checkpoint_every_s):
                self.checkpoints.write()
            if not continues:
                raise StopRequestedError

        # Rank 0 may fail here (full disk, error in the caller's code) or stop; the other ranks learn of both at once.
        try:
            ended = attempt_together(publish, self.workers, phase="checkpoint")
        except StopRequestedError:
            return False
        if isinstance(ended, OomFacts):
            self.checkpoints.note(ended)
        return True

    def _report(self, metrics: dict[str, float]) -> bool:
        """Report if a report is due; False if the caller stops the run."""
        if not metrics and not self.reporter.is_due():
            return True
        values = self._trunk_values()
        if metrics:
            values |= self.noise.metrics()
        return self.reporter.send(values | metrics)

    def _trunk_values(self) -> dict[str, float]:
        """Metrics of a report besides those of the holdout."""
        progress = self.progress
        values = {
            "tokens": float(progress.tokens),
            "step": float(progress.step),
            "epoch": progress.position / self.data.train.num_rows,
            "training_s": progress.training_s,
            "micro_batch_size": float(self.step.micro_batch_size),
            "memory/peak_bytes": float(self.budget.meter.peak_bytes),
        }
        flops = self._flops_a_token() if progress.training_s > _FLOPS_ARE_COUNTED_AFTER_S else None
        return values | self.reporter.stretch(self.last, flops_a_token=flops, num_workers=self.workers.count)

    def _flops_a_token(self) -> float | None:
        # Only after the memory proof: this pass would be counted.
        if not self.proof.is_given:
            return None
        if self._flops is None:
            source = self.step.source
            shard = source.shard(position=0, batch_size=1, rank=0, num_workers=1)
            batch = source.batch(shard, 0, 1).to(self.workers.device)
            self._flops = observed(
                "FLOPs a token", lambda: model_flops_a_token(self.model, batch, self.precision), otherwise=None
            )
        return self._flops

    _flops: float | None = None

    # Ends

    def _infeasible(self, facts: OomFacts, micro_batch_size: int) -> RunEnd:
        return self._end("infeasible", self.budget.in_words(facts, micro_batch_size), facts)

    def _end(self, outcome: Outcome, reason: str, oom: OomFacts | None = None) -> RunEnd:
        progress = self.trunk or self.progress
        return RunEnd(
            outcome=outcome,
            reason=reason,
            metrics=progress.metrics,
            tokens=progress.tokens,
            micro_batch_size_used=self.step.micro_batch_size,
            peak_memory_bytes=self.budget.largest_peak_bytes(),
            oom=oom,
            oom_events=self._oom_events(),
        )

    def _survived_in_words(self) -> str:
        events, asked, used = self._oom_events(), self.asked_micro_batch, self.step.micro_batch_size
        count = f"{len(events)} time{'s' if len(events) > 1 else ''}"
        ranks = ", ".join(sorted({f"rank {event.facts.rank}" for event in events}))
        times = f"; memory ran out {count} on the way" if events else ""
        times += f" on {ranks}" if events and self.workers.count > 1 else ""
        return times + (f", so with micro-batches of {used} rows instead of {asked}" if used < asked else "")

    def _oom_events(self) -> tuple[OutOfMemoryEvent, ...]:
        found = [*self.step.oom_events, *self.evaluation.oom_events, *self.checkpoints.oom_events]
        return tuple(sorted(found, key=lambda event: event.step))

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        """State of a checkpoint apart from tensors."""
        return {
            "settings": settings_that_count(self.run),
            "data": self.data.fingerprint,
            "base": self.base_hash,
            "micro_batch_size": self.step.micro_batch_size,
            "progress": asdict(self.progress),
            "noise": asdict(self.noise),
            "divergence": asdict(self.divergence),
            "loss_scale": asdict(self.step.loss_scale),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        copy_from_first(self.model, self.optimizer, self.workers)
        self.step.loss_scale = LossScale(**saved["loss_scale"])
        if "progress" not in saved:
            return  # A new stage counts from zero.
        self.progress = Progress(**saved["progress"])
        self.noise = NoiseScale(**saved["noise"])
        self.divergence = DivergenceWatch(**saved["divergence"])
        if self.step.micro_batch.shrinks:
            # Keep a size that was reduced after running out of memory, unless the settings now ask for less.
            self.step.micro_batch_size = min(self.step.micro_batch_size, saved["micro_batch_size"])

    def _settings_text(self) -> str:
        return f"{self.run.model_dump_json()} on data {self.data.fingerprint}"
