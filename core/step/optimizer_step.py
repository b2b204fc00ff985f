"""One optimizer step for any global batch, micro-batch and number of workers; it survives running out of memory.

Its order makes a retry safe. All forward and backward passes are local. Then the workers agree on whether any of them
ran out of memory. Only then gradients are summed, clipped and applied. Nothing changes before, so a step repeated with
smaller micro-batches gives the same result.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from core.distributed.adaptive_micro_batch import ChooseSmaller, MicroBatchSize
from core.distributed.collective_attempt import attempt_together
from core.distributed.gradient_exchange import GradientExchange
from core.distributed.workers import Workers
from core.memory.allocator_thrashing import Thrashing, allocator_retries
from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts, classify
from core.models.language_model import LanguageModel
from core.settings.precision import Precision
from core.step.compiled_body import compiled_body
from core.step.noise_scale import steps_between_measurements
from core.step.objectives import HiddenStates, add_gradients
from core.step.optimizer import gradient_norm, update
from core.step.step_profile import StepProfile
from data_pipeline.tokens.batches import Batch, BatchSource, Shard

_FIRST_LOSS_SCALE = 2.0**10
_SMALLEST_LOSS_SCALE = 2.0**-10
_STEPS_BEFORE_LARGER_SCALE = 2000


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of one step; equal on all ranks."""

    loss: float
    """Mean over all predicted tokens of the global batch, in nats per token."""
    auxiliary_loss: float | None
    gradient_norm: float
    """Gradient norm of the mean loss, before clipping."""
    learning_rate: float
    num_predicted: int
    num_tokens: int
    """Tokens of the global batch, padding not counted."""
    is_applied: bool
    """False if the loss or a gradient was not finite; the weights are then unchanged."""
    noise_pair: tuple[float, float, float, float] | None
    """Arguments of `NoiseScale.with_measurement`, in order; None if this step took no measurement."""


@dataclass(frozen=True, slots=True)
class StepOutOfMemory:
    """The step ran out of memory, and nothing changed."""

    facts: OomFacts
    micro_batch_size: int
    """Micro-batch size of the attempt, in rows."""


class UpdateOutOfMemoryError(RuntimeError):
    """Memory ran out during the exchange or the update, so the step can be neither kept nor repeated.

    It is not expected, because an update allocates no memory. It ends the run; a restart resumes from the last
    checkpoint.
    """

    def __init__(self, facts: OomFacts) -> None:
        super().__init__(
            f"out of memory in {facts.phase} on rank {facts.rank}, where a step cannot be repeated: {facts.message}. "
            "Start the run again; it resumes from its last checkpoint."
        )
        self.facts = facts

    def __reduce__(self) -> tuple[type[Self], tuple[OomFacts]]:
        # Rebuild it from its facts in another process, not from its text.
        return type(self), (self.facts,)


@dataclass
class LossScale:
    """Factor on the loss in fp16, whose small gradients would round to zero; halved when gradients overflow."""

    value: float = 1.0
    good_steps: int = 0

    def adapt(self, *, was_finite: bool) -> None:
        """Halve the scale after an overflow; double it after many finite steps in a row."""
        self.good_steps = self.good_steps + 1 if was_finite else 0
        if not was_finite:
            self.value /= 2
        elif self.good_steps % _STEPS_BEFORE_LARGER_SCALE == 0:
            self.value *= 2


@dataclass(slots=True)
class _LocalSums:
    """Sums over the rows of this worker."""

    loss: Tensor
    auxiliary: Tensor
    num_predicted: int = 0
    num_tokens: int = 0
    small_squared_norm: Tensor | None = None
    """Squared norm of the mean gradient of the first micro-batch."""
    small_rows: int = 0


class OptimizerStep:
    """Takes optimizer steps on a model.

    Args:
        batch_size: Rows of the global batch over all workers.
        micro_batch_size: Maximum rows of one forward/backward pass on one worker; may shrink.
        tokens_per_step: Mean tokens of a global batch.
        clip: Maximum gradient norm; None: no clipping.
        choose_smaller: Chooses the size after a micro-batch runs out of memory. None: the step ends instead.
        bytes_in_use: Returns the bytes that this worker holds; called after it ran out of memory.
        listen: Called before each micro-batch; raises StopRequestedError to stop the run.
        seed: Seed of dropout.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        source: BatchSource,
        workers: Workers,
        precision: Precision,
        *,
        batch_size: int,
        micro_batch_size: int,
        tokens_per_step: float,
        clip: float | None = None,
        choose_smaller: ChooseSmaller | None = None,
        bytes_in_use: Callable[[], int | None] = lambda: None,
        listen: Callable[[], None] = lambda: None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.source = source
        self.workers = workers
        self.precision = precision
        self.batch_size = batch_size
        rows = min(micro_batch_size, math.ceil(batch_size / workers.count))
        self.micro_batch = MicroBatchSize(rows, workers, choose_smaller)
        self.oom_events: list[OutOfMemoryEvent] = []
        """Out-of-memory events that the run survived."""
        self.clip = clip
        self.seed = seed
        self.loss_scale = LossScale(_FIRST_LOSS_SCALE if precision.name == "fp16" else 1.0)
        self.profile = StepProfile(workers.device, is_read=workers.is_first)
        self.overlaps_exchange = False
        """True: sum gradients while the backward pass still runs. Set it only after the memory proof."""
        self._compiled: HiddenStates | None = None
        self._compiled_rows = 0
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._exchange = GradientExchange(model, workers) if workers.count > 1 else None
        self._bytes_in_use = bytes_in_use
        self._listen = listen
        self.thrashing = Thrashing(allocator_retries(workers.device))
        self._is_thrashing = False
        self._phase: Literal["forward", "backward"] = "forward"
        self._dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
        self._tokens_per_step = tokens_per_step

    @property
    def micro_batch_size(self) -> int:
        """Rows of one forward/backward pass on one worker."""
        return self.micro_batch.rows

    @micro_batch_size.setter
    def micro_batch_size(self, rows: int) -> None:
        self.micro_batch.rows = rows

    def take(self, *, step: int, position: int, learning_rate: Callable[[int], float]) -> StepResult | StepOutOfMemory:
        """Take one step on the global batch at `position`. All workers call it.

        Args:
            step: Steps taken before; part of the seed of dropout.
            position: Rows that all workers consumed before.
            learning_rate: Maps the number of tokens of the step, known only with the batch, to its learning rate.

        Raises:
            StopRequestedError: `listen` raised it on a worker; nothing has changed.
            UpdateOutOfMemoryError: Memory ran out in the exchange or the update.
            RuntimeError: Another worker failed; that worker raises its own error.
        """
        shard = self.source.shard(
            position=position, batch_size=self.batch_size, rank=self.workers.rank, num_workers=self.workers.count
        )
        if self.micro_batch.grow_back():
            self.overlaps_exchange = False
        while True:
            sums = attempt_together(
                lambda: self._local_work(shard, step),
                self.workers,
                phase=lambda: self._phase,
                # After thrashing, the bytes in use do not show the demand.
                bytes_in_use=lambda: None if self._is_thrashing else self._bytes_in_use(),
                settle=self._settle,
            )
            if isinstance(sums, _LocalSums):
                result = self._finish(sums, learning_rate)
                self.micro_batch.note_clean_step()
                return result
            self._forget_gradients()
            self.model.forget_auxiliary_loss()  # Frees the activations of the aborted pass.
            tried = self.micro_batch_size
            event = self.micro_batch.shrink(sums, step=step)
            if event is None:
                return StepOutOfMemory(sums, tried)
            self.oom_events.append(event)
            self.overlaps_exchange = False

    def rehearse(self, rows: int) -> None:
        """Forward and backward pass of the first rows without exchange or update; adds to the gradients.

        It returns after the device has finished.
        """
        shard = self.source.shard(position=0, batch_size=rows, rank=0, num_workers=1)
        loss, auxiliary = torch.zeros(2, dtype=torch.float64, device=self.workers.device)
        sums = _LocalSums(loss, auxiliary)
        with self.precision.autocast():
            self._add_gradients(self._batch(shard, 0, rows), 0, 0, sums, may_exchange=False)
        sums.loss.item()

    def compile_body(self) -> None:
        """Run the body as compiled code from now on, for micro-batches of the current size only.

        Call it after counting memory stops: under a dispatch mode torch.compile silently does nothing. It compiles
        once; after a shrink another compilation would cost more than it gains.
        """
        if self._compiled is not None:
            return
        self._compiled = compiled_body(self.model, rows=self.micro_batch_size)
        self._compiled_rows = self.micro_batch_size

    def _local_work(self, shard: Shard, step: int) -> _LocalSums:
        """Forward and backward pass of all rows of this worker; leaves the gradients of summed losses in `.grad`."""
        self._forget_gradients()
        measures_noise = self._noise_is_measurable and step % self._steps_between_noise() == 0
        device = self.workers.device
        loss, auxiliary = torch.zeros(2, dtype=torch.float64, device=device)
        sums = _LocalSums(loss, auxiliary)
        if measures_noise and self._noise_needs_extra_pass:
            self._measure_small(shard, self.batch_size // 2, sums)
        # One autocast over all micro-batches casts the weights once per step.
        with self.precision.autocast():
            for start in range(0, len(shard), self.micro_batch_size):
                self._listen()
                stop = min(start + self.micro_batch_size, len(shard))
                batch = self._batch(shard, start, stop)
                is_small = measures_noise and start == 0 and sums.small_squared_norm is None
                # An exchange would add gradients of other ranks while the small norm is computed.
                self._add_gradients(batch, step, start, sums, may_exchange=stop == len(shard) and not is_small)
                if is_small:
                    self._note_small_norm(batch, sums)
        self._is_thrashing = self.thrashing.is_steady() and self.micro_batch.can_shrink
        if self._is_thrashing:
            raise torch.OutOfMemoryError("the allocator empties its cache in every step to serve requests (thrashing)")
        return sums

    def _add_gradients(self, batch: Batch, step: int, start: int, sums: _LocalSums, *, may_exchange: bool) -> None:
        if self._dropout:
            # A repeated or resumed step drops the same units; only another micro-batch size changes them.
            torch.manual_seed(_seed_of(self.seed, step, self.workers.rank, start))
        loss, auxiliary = add_gradients(
            self.model,
            batch,
            self.precision,
            scale=self.loss_scale.value,
            # Another shape would recompile, which costs more than one batch gains.
            hidden_states=self._compiled if len(batch.inputs_BT) == self._compiled_rows else None,
            span=self._span,
            before_last_backward=self._start_exchange if may_exchange else lambda: None,
        )
        sums.loss += loss
        if auxiliary is not None:
            sums.auxiliary += auxiliary
        sums.num_predicted += batch.labels_P.numel()
        sums.num_tokens += batch.num_tokens

    @contextmanager
    def _span(self, stretch: Literal["forward", "backward"]) -> Iterator[None]:
        self._phase = stretch
        with self.profile.span(stretch):
            yield

    @contextmanager
    def _done_once(self, phase: Literal["exchange", "optimizer"]) -> Iterator[None]:
        """Part of the step that cannot be repeated: running out of memory raises UpdateOutOfMemoryError."""
        try:
            with self.profile.span(phase):
                yield
        except Exception as error:
            facts = classify(error, phase=phase, rank=self.workers.rank)
            if facts is None:
                raise
            raise UpdateOutOfMemoryError(facts) from error

    def _finish(self, sums: _LocalSums, learning_rate: Callable[[int], float]) -> StepResult:
        """Exchange sums and gradients over all ranks, then update the weights."""
        with self._done_once("exchange"):
            if self._exchange is not None:
                if self.overlaps_exchange:
                    self._exchange.agree_on_order()
                else:
                    self._exchange.finish()
            totals = self._add_up(sums)
        with self._done_once("optimizer"):
            loss, auxiliary, num_predicted, num_tokens, small_norm, small_inverse_rows, scaled_norm = torch.cat(
                [totals, gradient_norm(self._parameters).double().reshape(1)]
            ).tolist()  # The only point where a step waits for the device.
            if num_predicted == 0:
                raise ValueError(
                    "a whole global batch has no token to predict: its rows are too short or all padding; raise "
                    "training.batch_size or give longer documents"
                )
            # Sum first, divide once: micro-batches and ranks hold different numbers of predicted tokens.
            divisor = num_predicted * self.loss_scale.value
            norm = scaled_norm / divisor
            rate = learning_rate(int(num_tokens))
            is_finite = math.isfinite(norm) and math.isfinite(loss)
            if is_finite:
                clipping = min(1.0, self.clip / (norm + 1e-6)) if self.clip is not None else 1.0
                update(self.optimizer, gradient_scale=clipping / divisor, learning_rate=rate)
        if self.precision.name == "fp16":
            self.loss_scale.adapt(was_finite=is_finite)
        count = self.workers.count
        return StepResult(
            loss=loss / num_predicted,
            auxiliary_loss=auxiliary / num_predicted if self.model.auxiliary_loss() is not None else None,
            gradient_norm=norm,
            learning_rate=rate,
            num_predicted=int(num_predicted),
            num_tokens=int(num_tokens),
            is_applied=is_finite,
            noise_pair=(small_norm / count, count / small_inverse_rows, norm**2, float(self.batch_size))
            if small_inverse_rows > 0 and is_finite
            else None,
        )

    @property
    def can_lower_loss_scale(self) -> bool:
        """True if a non-finite gradient may be caused by the fp16 loss scale; such a step is skipped."""
        return self.precision.name == "fp16" and self.loss_scale.value > _SMALLEST_LOSS_SCALE

    def _add_up(self, sums: _LocalSums) -> Tensor:
        """Sums over all workers in one exchange; fp64 keeps counts exact."""
        device = self.workers.device
        norm = sums.small_squared_norm
        counts = [float(sums.num_predicted), float(sums.num_tokens)]
        local = torch.cat(
            [
                torch.stack([sums.loss, sums.auxiliary]),
                torch.tensor(counts, dtype=torch.float64, device=device),
                torch.zeros(1, dtype=torch.float64, device=device) if norm is None else norm.double().reshape(1),
                torch.tensor([1.0 / sums.small_rows if sums.small_rows else 0.0], dtype=torch.float64, device=device),
            ]
        )
        return self.workers.add_up(local)

    def _batch(self, shard: Shard, start: int, stop: int) -> Batch:
        with self.profile.span("data"):
            return self.source.batch(shard, start, stop).to(self.workers.device)

    # Gradients

    def _forget_gradients(self) -> None:
        if self._exchange is not None:
            self._exchange.reset()
        else:
            self.optimizer.zero_grad(set_to_none=True)

    def _start_exchange(self) -> None:
        if self._exchange is not None and self.overlaps_exchange:
            self._exchange.start()

    def _settle(self) -> None:
        if self._exchange is not None and self.overlaps_exchange:
            with self.profile.span("exchange"):
                self._exchange.finish()

    # Noise scale

    @property
    def _noise_is_measurable(self) -> bool:
        return self.batch_size >= 2 * self.workers.count

    @property
    def _noise_needs_extra_pass(self) -> bool:
        return self.workers.count == 1 and self.micro_batch_size >= self.batch_size

    def _steps_between_noise(self) -> int:
        return steps_between_measurements(
            tokens_per_step=self._tokens_per_step, needs_extra_pass=self._noise_needs_extra_pass
        )

    def _measure_small(self, shard: Shard, num_rows: int, sums: _LocalSums) -> None:
        """Measure the gradient norm of some rows in a separate pass before the step."""
        batch = self._batch(shard, 0, num_rows)
        add_gradients(self.model, batch, self.precision, scale=self.loss_scale.value)
        self._note_small_norm(batch, sums)
        self._forget_gradients()

    def _note_small_norm(self, batch: Batch, sums: _LocalSums) -> None:
        divisor = batch.labels_P.numel() * self.loss_scale.value
        sums.small_squared_norm = (gradient_norm(self._parameters) / divisor) ** 2
        sums.small_rows = len(batch.inputs_BT)


def _seed_of(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")
