"""Proof that a run fits in memory: after it, counting stops and gradient exchanges overlap the backward pass."""

from core.memory.out_of_memory import OomFacts
from core.step.evaluation import Evaluation
from core.step.optimizer_step import OptimizerStep
from core.training.memory_budget import MemoryBudget
from data_pipeline.tokens.token_blocks import PreparedCorpus

_PROVING_STEPS = 2
"""With fixed shapes, memory is flat from the second step on: the first step allocates all that persists."""


class MemoryProof:
    """A few clean steps and one micro-batch of evaluation; then counting stops.

    Counting costs 5-8 % of the speed on a CPU. Stopping is safe: all micro-batches of a run have the same shape, so
    these steps prove the rest. Rows with padding vary in their predicted positions; with a memory limit they
    are counted to the end. On CUDA the allocator enforces the limit without cost, so it stays.

    Args:
        compiles: Compile the model's body after counting stops.
        grows: The batch grows during the run, so early steps prove nothing of later ones.
    """

    def __init__(
        self,
        step: OptimizerStep,
        evaluation: Evaluation,
        budget: MemoryBudget,
        data: PreparedCorpus,
        *,
        compiles: bool,
        grows: bool = False,
    ) -> None:
        self._step, self._evaluation, self._budget = step, evaluation, budget
        rows_are_full = data.train.num_tokens > 0.99 * data.train.num_rows * data.train.sequence_length
        self._may_stop_counting = not grows and (budget.limit_bytes is None or rows_are_full)
        self._compiles = compiles
        self._micro_batch = step.micro_batch_size
        self._clean_steps = 0
        """Clean steps since memory last ran out."""

    @property
    def is_given(self) -> bool:
        """True once the proof is complete."""
        return self._clean_steps >= _PROVING_STEPS

    def after_step(self, *, step: int) -> OomFacts | None:
        """Record one more clean step; the facts if the rehearsed evaluation then runs out of memory.

        Args:
            step: Optimizer steps taken so far.
        """
        if self._step.micro_batch_size != self._micro_batch:
            self._micro_batch, self._clean_steps = self._step.micro_batch_size, 0
            self._evaluation.num_rows = min(self._evaluation.num_rows, self._step.micro_batch_size)
        if self.is_given:
            return None
        self._clean_steps += 1
        if not self.is_given:
            return None
        facts = self._evaluation.rehearse(step=step)
        if facts is not None:
            return facts
        is_unwatched = self._step.workers.device.type != "cpu"
        if not is_unwatched and self._may_stop_counting:
            self._budget.meter.stop()
            is_unwatched = True
        self._step.overlaps_exchange = True
        if self._compiles and is_unwatched:
            self._step.compile_body()
        return None
