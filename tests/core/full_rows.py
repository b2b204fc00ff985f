"""Real training steps on rows that are full, for tests that compare real memory with predicted."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from core.distributed.workers import Workers
from core.models.lora import add_lora
from core.models.model_factory import build_model
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepOutOfMemory, StepResult
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import Rows, TokenBlocks
from data_pipeline.tokens.tokenizer import Vocabulary


def a_run(*, batch_size: int = 16, **changes: Any) -> RunConfig:
    """A small run; changes name fields of the model or of the training."""
    model = {"layers": 2, "width": 128, "heads": 4, "sequence_length": 64}
    training: dict[str, Any] = {"batch_size": batch_size, "precision": "fp32"}
    of_training = ("precision", "activation_checkpointing", "micro_batch_size", "lora", "optimizer")
    for name, value in changes.items():
        (training if name in of_training else model)[name] = value
    objective = "causal_lm" if model.get("family") == "decoder" else "masked_lm"
    return RunConfig.model_validate({"model": model, "objective": objective, "training": training})


class FullRows:
    """What training reads of `TokenBlocks`: random tokens, no padding, and no special tokens unless asked for."""

    def __init__(
        self, *, sequence_length: int, vocabulary_size: int, has_documents: bool = False, num_special: int = 0
    ) -> None:
        self.num_rows = 512
        self.sequence_length = sequence_length
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(5, vocabulary_size, (self.num_rows, sequence_length)).astype(np.uint16)
        self.tokens[:, :num_special] = 0
        self.has_documents = has_documents

    def rows(self, row_numbers: NDArray[np.int64]) -> Rows:
        shape = (len(row_numbers), self.sequence_length)
        documents = np.repeat(
            np.arange(2), [self.sequence_length // 2, self.sequence_length - self.sequence_length // 2]
        )
        return Rows(
            self.tokens[row_numbers],
            np.full(len(row_numbers), self.sequence_length, np.int32),
            np.broadcast_to(documents, shape).astype(np.int32) if self.has_documents else None,
        )


def an_optimizer_step(
    run: RunConfig,
    vocabulary_size: int,
    *,
    micro_batch_size: int,
    has_documents: bool = False,
    num_special: int = 0,
    workers: Workers | None = None,
) -> OptimizerStep:
    """A model that has just been built, with all that a step needs."""
    torch.manual_seed(0)
    workers = workers or Workers()
    vocabulary = Vocabulary(
        size=vocabulary_size, pad_id=1, unk_id=3, bos_id=0, eos_id=2, mask_id=4, special_ids=(0, 1, 2, 3, 4)
    )
    model = build_model(run.model, vocabulary_size)
    if run.training.lora is not None:
        precision = choose_precision(run.training.precision, workers.device)
        add_lora(model, run.model, run.training.lora, frozen_dtype=precision.dtype)
    model.set_activation_checkpointing(run.training.activation_checkpointing)
    rows = FullRows(
        sequence_length=run.model.sequence_length,
        vocabulary_size=vocabulary_size,
        has_documents=has_documents,
        num_special=num_special,
    )
    precision = choose_precision(run.training.precision, workers.device)
    return OptimizerStep(
        model,
        build_optimizer(model, run.training, tokens_per_step=1.0, precision=precision),
        BatchSource(
            cast(TokenBlocks, rows), vocabulary, masking_rate=run.objective.masking_rate, seed=run.training.seed
        ),
        workers,
        precision,
        batch_size=run.training.batch_size,
        micro_batch_size=micro_batch_size,
        tokens_per_step=1.0,
        clip=run.training.clip,
    )


def take_steps(
    run: RunConfig,
    vocabulary_size: int,
    *,
    micro_batch_size: int,
    num_steps: int = 2,
    has_documents: bool = False,
    num_special: int = 0,
    workers: Workers | None = None,
) -> StepResult | StepOutOfMemory:
    """The last of some optimizer steps, beginning with a model that has not been built yet."""
    step = an_optimizer_step(
        run,
        vocabulary_size,
        micro_batch_size=micro_batch_size,
        has_documents=has_documents,
        num_special=num_special,
        workers=workers,
    )
    for number in range(num_steps):
        result = step.take(step=number, position=number * run.training.batch_size, learning_rate=lambda _: 1e-4)
        if isinstance(result, StepOutOfMemory):
            break
    return result
