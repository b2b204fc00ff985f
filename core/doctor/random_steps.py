"""Optimizer steps of any run on random rows: no corpus is needed.

Shape suffixes: B rows, T tokens a row, P predicted positions.
"""

import math

import numpy as np
import torch

from core.distributed.adaptive_micro_batch import ChooseSmaller
from core.distributed.workers import Workers
from core.models.model_factory import build_model
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepOutOfMemory, StepResult
from data_pipeline.tokens.batches import Batch, BatchSource, Shard, predicted_in_full_row


def random_step(
    run: RunConfig,
    vocabulary_size: int,
    *,
    micro_batch_size: int,
    device: torch.device,
    choose_smaller: ChooseSmaller | None = None,
) -> OptimizerStep:
    """The step of a freshly initialised model; equal arguments give equal weights and rows on every device.

    Args:
        choose_smaller: Chooses the size after memory runs out. None: the step ends instead.
    """
    torch.manual_seed(run.training.seed)
    model = build_model(run.model, vocabulary_size).to(device)
    model.set_activation_checkpointing(run.training.activation_checkpointing)
    precision = choose_precision(run.training.precision, device)
    return OptimizerStep(
        model,
        build_optimizer(model, run.training, tokens_per_step=1.0, precision=precision),
        _RandomRows(run, vocabulary_size),
        Workers(device=device),
        precision,
        batch_size=run.training.batch_size,
        micro_batch_size=micro_batch_size,
        tokens_per_step=run.training.batch_size * run.model.sequence_length,
        clip=run.training.clip,
        choose_smaller=choose_smaller,
    )


def take(step: OptimizerStep, *, num_steps: int) -> list[StepResult] | StepOutOfMemory:
    """The results of some steps, or the shortage that ended them."""
    results = []
    for number in range(num_steps):
        result = step.take(step=number, position=number * step.batch_size, learning_rate=lambda _: 1e-3)
        if isinstance(result, StepOutOfMemory):
            return result
        results.append(result)
    return results


class _RandomRows(BatchSource):
    """A table of full rows of random tokens, whose first positions are predicted."""

    def __init__(self, run: RunConfig, vocabulary_size: int) -> None:
        self._length = run.model.sequence_length
        self._num_predicted = predicted_in_full_row(self._length, run.objective.masking_rate)
        rng = np.random.default_rng(run.training.seed)
        num_rows = max(256, run.training.batch_size)
        # Frequent tokens and rare ones, so that there is something to learn.
        ranks = rng.random((num_rows, self._length)) ** 3
        self._tokens = (ranks * vocabulary_size).astype(np.int64)

    def shard(self, *, position: int, batch_size: int, rank: int, num_workers: int) -> Shard:
        count = math.ceil(batch_size / num_workers)
        rows = (position + rank * count + np.arange(count)) % len(self._tokens)
        return Shard(rows, np.zeros_like(rows))

    def batch(self, shard: Shard, start: int, stop: int) -> Batch:
        inputs_BT = torch.from_numpy(self._tokens[shard.row_numbers[start:stop]])
        first_of_row = torch.arange(stop - start)[:, None] * self._length
        positions_P = (first_of_row + torch.arange(self._num_predicted)).flatten()
        return Batch(
            inputs_BT=inputs_BT,
            positions_P=positions_P,
            labels_P=inputs_BT.roll(-1, dims=1).flatten()[positions_P],
            document_ids_BT=None,
            num_tokens=inputs_BT.numel(),
            most_predicted=len(positions_P),
        )
