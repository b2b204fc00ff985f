"""Floating-point operations of a training run, counted without running it."""

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.models.lora import add_lora
from core.models.model_factory import build_model
from core.models.size_matching import flops_a_token
from core.settings.model_config import ModelConfig
from core.settings.run_config import RunConfig
from core.settings.training_config import LoraConfig
from core.step.step_profile import flops_with_backward
from core.torch_internals.fake_tensors import all_fake
from core.user_code.code_places import UserCodeError


def training_flops_a_token(run: RunConfig, vocabulary_size: int) -> float:
    """Floating-point operations of training per token of a full row, counted as in `step_profile.model_flops_a_token`.

    Recomputed activations do not count, so that the number compares models and not speed settings.
    """
    body, head = _flops(run.model, vocabulary_size, run.training.lora)
    return body + head * (run.objective.masking_rate or 1.0)


def rough_training_flops_a_token(run: RunConfig, vocabulary_size: int) -> float:
    """The same by formula, for estimates: at once, and for dense models within a factor of two.

    Adapters count as if all matrices were trained.
    """
    if run.model.class_ is not None:
        return training_flops_a_token(run, vocabulary_size)  # No formula knows the class.
    head = 2.0 * vocabulary_size * run.model.width * (run.objective.masking_rate or 1.0)
    return 3.0 * (flops_a_token(run.model) + head)


@lru_cache(maxsize=64)
def _flops(model: ModelConfig, vocabulary_size: int, lora: LoraConfig | None) -> tuple[float, float]:
    """(operations per token before the head, operations per predicted token in the head)."""
    try:
        # Fake tensors have no values and no memory.
        with all_fake():
            return _counted(model, vocabulary_size, lora)
    except UserCodeError:  # A user's class that depends on values.
        return _counted(model, vocabulary_size, lora)


def _counted(model: ModelConfig, vocabulary_size: int, lora: LoraConfig | None) -> tuple[float, float]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        built = build_model(model, vocabulary_size)
        if lora is not None:
            add_lora(built, model, lora)
        tokens_BT = torch.zeros(1, model.sequence_length, dtype=torch.long)
        with FlopCounterMode(display=False) as body:
            hidden_BTD = built.hidden_states(tokens_BT)
        with FlopCounterMode(display=False) as head:
            built.logits(hidden_BTD.flatten(0, 1)[:1])
    length = model.sequence_length
    return (
        flops_with_backward(body, built, num_tokens=length) / length,
        flops_with_backward(head, built, num_tokens=0),
    )
