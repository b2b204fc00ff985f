"""Optimizer steps of a small model in fp64."""

from typing import Any

import torch
from small_corpus import VOCABULARY, small_corpus

from core.distributed.adaptive_micro_batch import Smaller, half_of
from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.settings.training_config import TrainingConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepResult
from data_pipeline.tokens.batches import BatchSource

BATCH_SIZE = 16


def a_step(
    workers: Workers, *, micro_batch_size: int, family: str = "encoder", padded: bool = True, **changes: Any
) -> OptimizerStep:
    """A small model in fp64, where what is equal agrees to 1e-12 and what is not does not; or in fp32."""
    dtype = changes.pop("dtype", torch.float64)
    model_changes = changes.pop("model", {})
    torch.manual_seed(0)
    config = ModelConfig(
        **{"family": family, "layers": 2, "width": 32, "heads": 2, "sequence_length": 16, **model_changes}
    )
    model = build_model(config, VOCABULARY.size).to(dtype)
    training = TrainingConfig(weight_decay=0.1, optimizer=changes.pop("optimizer", "adamw"))
    source = BatchSource(
        small_corpus(padded=padded).train, VOCABULARY, masking_rate=0.3 if family == "encoder" else None, seed=3
    )
    return OptimizerStep(
        model,
        build_optimizer(model, training, tokens_per_step=100),
        source,
        workers,
        changes.pop("precision", Precision("fp32", "cpu")),
        batch_size=BATCH_SIZE,
        micro_batch_size=micro_batch_size,
        tokens_per_step=100,
        clip=changes.pop("clip", 0.5),
        **changes,
    )


def train(step: OptimizerStep, *, num_steps: int = 20, from_step: int = 0) -> list[StepResult]:
    results = []
    for number in range(from_step, from_step + num_steps):
        result = step.take(step=number, position=number * BATCH_SIZE, learning_rate=lambda _: 3e-3)
        assert isinstance(result, StepResult), result
        results.append(result)
    return results


def to_half(tried: int, _: OomFacts) -> Smaller:
    return Smaller(half_of(tried), is_neighbours=False)
