"""One optimizer step: any global batch, any micro-batch, any number of workers, and it survives running out of memory.

The order is what makes it safe. All forward and backward passes are local; then the workers agree on whether anybody
ran out of memory; only then gradients are summed, clipped and applied. Until that last line nothing has changed, so a
step can be done again with smaller micro-batches and comes out the same.
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
    """What one step did; the same numbers on every rank."""

    loss: float
    """Mean over all predicted tokens of the global batch, nats a token."""
    auxiliary_loss: float | None
    gradient_norm: float
    """Of the mean loss, before clipping."""
    learning_rate: float
    num_predicted: int
    num_tokens: int
    """Real tokens of the global batch."""
    is_applied: bool
    """False where a gradient was not finite: the weights are as before."""
    noise_pair: tuple[float, float, float, float] | None
    """Squared norms and rows of a small and the whole batch: arguments of `NoiseScale.with_measurement`, in order."""


@dataclass(frozen=True, slots=True)
class StepOutOfMemory:
    """The step could not be done, and nothing has changed."""

    facts: OomFacts
    micro_batch_size: int
    """With which it was tried."""


class UpdateOutOfMemoryError(RuntimeError):
    """Memory ran out while the weights were being changed, so the step can be neither kept nor done again.

    It should not happen, for all that an update needs exists from the start. It ends the run; the same run begun again
    goes on from its last checkpoint.
    """

    def __init__(self, facts: OomFacts) -> None:
        super().__init__(
            f"out of memory in {facts.phase} on rank {facts.rank}, where a step cannot be done again: {facts.message}"
        )
        self.facts = facts

    def __reduce__(self) -> tuple[type[Self], tuple[OomFacts]]:
        # Built again from its facts in another process, not from its text.
        return type(self), (self.facts,)


@dataclass
class LossScale:
    """Factor on the loss in fp16, whose smallest gradients would round to zero; halved whenever it was too large."""

    value: float = 1.0
    good_steps: int = 0

    def adapt(self, *, was_finite: bool) -> None:
        """Learn from one step."""
        self.good_steps = self.good_steps + 1 if was_finite else 0
        if not was_finite:
            self.value /= 2
        elif self.good_steps % _STEPS_BEFORE_LARGER_SCALE == 0:
            self.value *= 2


@dataclass(slots=True)
class _LocalSums:
    """Sums over this worker's rows."""

    loss: Tensor
    auxiliary: Tensor
    num_predicted: int = 0
    num_tokens: int = 0
    small_squared_norm: Tensor | None = None
    """Of the first micro-batch's mean gradient."""
    small_rows: int = 0


class OptimizerStep:
    """Takes optimizer steps on a model. Holds what stays the same from step to step.

    Args:
        micro_batch_size: Rows of one forward/backward on one worker, at most; may shrink.
        choose_smaller: What a micro-batch that runs out of memory shrinks to. None: the step ends there.
        bytes_in_use: What this worker holds now, asked where its memory has run out.
        listen: Called before each micro-batch; raises StopRequestedError where the run is to end.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.AdamW,
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
        """Those that it survived."""
        self.clip = clip
        self.seed = seed
        self.loss_scale = LossScale(_FIRST_LOSS_SCALE if precision.name == "fp16" else 1.0)
        self.profile = StepProfile(workers.device)
        self.overlaps_exchange = False
        """Sum gradients while the backward pass still runs; for when memory is proven."""
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
        """Rows of one forward/backward on one worker."""
        return self.micro_batch.rows

    @micro_batch_size.setter
    def micro_batch_size(self, rows: int) -> None:
        self.micro_batch.rows = rows

    def take(self, *, step: int, position: int, learning_rate: Callable[[int], float]) -> StepResult | StepOutOfMemory:
        """One step on the global batch at `position`.

        Args:
            step: Steps taken before; it seeds dropout.
            learning_rate: Of a step that consumes the given number of tokens; that is known only with the batch.

        Raises:
            StopRequestedError: A worker heard that the run is to end; nothing has changed.
            RuntimeError: Another worker failed; that one raises what went wrong.
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
                # What thrashing leaves in use is not what it wanted.
                bytes_in_use=lambda: None if self._is_thrashing else self._bytes_in_use(),
                settle=self._settle,
            )
            if isinstance(sums, _LocalSums):
                result = self._finish(sums, learning_rate)
                self.micro_batch.note_clean_step()
                return result
            self._forget_gradients()
            self.model.forget_auxiliary_loss()  # and with it the activations of the pass that broke off
            tried = self.micro_batch_size
            event = self.micro_batch.shrink(sums, step=step)
            if event is None:
                return StepOutOfMemory(sums, tried)
            self.oom_events.append(event)
            self.overlaps_exchange = False

    def rehearse(self, rows: int) -> None:
        """Forward and backward of the first rows, added to what gradients there are; nothing is exchanged or updated.

        It returns when the device is done.
        """
        shard = self.source.shard(position=0, batch_size=rows, rank=0, num_workers=1)
        loss, auxiliary = torch.zeros(2, dtype=torch.float64, device=self.workers.device)
        sums = _LocalSums(loss, auxiliary)
        with self.precision.autocast():
            self._add_gradients(self._batch(shard, 0, rows), 0, 0, sums, may_exchange=False)
        sums.loss.item()

    def compile_body(self) -> None:
        """From now on run the body as compiled code, for micro-batches of the present size and no others.

        Not while memory is counted: under a dispatch mode torch.compile silently does nothing. Only once, for after a
        shrink to smaller micro-batches another compilation would cost more than it could win.
        """
        if self._compiled is not None:
            return
        self._compiled = torch.compile(self.model.hidden_states, dynamic=False)
        self._compiled_rows = self.micro_batch_size

    def _local_work(self, shard: Shard, step: int) -> _LocalSums:
        """Forward and backward of all this worker's rows; gradients of summed losses are in `.grad` afterwards."""
        self._forget_gradients()
        measures_noise = self._noise_is_measurable and step % self._steps_between_noise() == 0
        device = self.workers.device
        loss, auxiliary = torch.zeros(2, dtype=torch.float64, device=device)
        sums = _LocalSums(loss, auxiliary)
        if measures_noise and self._noise_needs_extra_pass:
            self._measure_small(shard, self.batch_size // 2, sums)
        # One autocast over all micro-batches: weights are cast once a step.
        with self.precision.autocast():
            for start in range(0, len(shard), self.micro_batch_size):
                self._listen()
                stop = min(start + self.micro_batch_size, len(shard))
                batch = self._batch(shard, start, stop)
                is_small = measures_noise and start == 0 and sums.small_squared_norm is None
                # The exchange would add other ranks' gradients to the small one while its norm is taken.
                self._add_gradients(batch, step, start, sums, may_exchange=stop == len(shard) and not is_small)
                if is_small:
                    self._note_small_norm(batch, sums)
        self._is_thrashing = self.thrashing.is_steady() and self.micro_batch.can_shrink
        if self._is_thrashing:
            raise torch.OutOfMemoryError("the allocator gives back its cache in every step to find room (thrashing)")
        return sums

    def _add_gradients(self, batch: Batch, step: int, start: int, sums: _LocalSums, *, may_exchange: bool) -> None:
        if self._dropout:
            # A step done again, or by a resumed run, drops the same; only another micro-batch drops differently.
            torch.manual_seed(_seed_of(self.seed, step, self.workers.rank, start))
        loss, auxiliary = add_gradients(
            self.model,
            batch,
            self.precision,
            scale=self.loss_scale.value,
            # Another shape would compile again, which costs more than one batch can win.
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
        """A part of the step that is never done again, whatever happens in it."""
        try:
            with self.profile.span(phase):
                yield
        except Exception as error:
            facts = classify(error, phase=phase, rank=self.workers.rank)
            if facts is None:
                raise
            raise UpdateOutOfMemoryError(facts) from error

    def _finish(self, sums: _LocalSums, learning_rate: Callable[[int], float]) -> StepResult:
        """Everything that needs all ranks, and the update."""
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
            ).tolist()  # the one place where a step waits for the device
            if num_predicted == 0:
                raise ValueError(
                    "a whole global batch holds no token to predict; its rows are too short or all padding"
                )
            # Sums until here, divided once: micro-batches and ranks hold different numbers of predicted tokens.
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
        """Whether a gradient that is not finite may be the loss scale's doing; the step was skipped then."""
        return self.precision.name == "fp16" and self.loss_scale.value > _SMALLEST_LOSS_SCALE

    def _add_up(self, sums: _LocalSums) -> Tensor:
        """Sums over all workers, in one exchange; fp64, for counts stay exact in it."""
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
        """The gradient of some of the rows alone: a pass of its own, smaller than the step's and before it."""
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
