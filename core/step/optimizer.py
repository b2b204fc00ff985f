"""AdamW, or Muon with AdamW, with its state allocated from the start; and the gradient norm."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from core.models.language_model import LanguageModel
from core.models.layer_matrices import layer_matrices
from core.settings.precision import Precision
from core.settings.training_config import TrainingConfig
from core.step.muon import MuonAndAdamW
from core.torch_internals.unlisted_kernels import multiply_all

_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(
    model: LanguageModel, training: TrainingConfig, *, tokens_per_step: float, precision: Precision | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters of a model, on their device; fused where the device supports it.

    Weight decay applies to matrices only, not to biases and the gains of norms.

    Args:
        tokens_per_step: Tokens of a global batch, for `training.beta2_half_life_tokens`.
        precision: Number format of the run; Muon multiplies matrices in bf16 if this is bf16. None: in that of the
            weights.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    joints = layer_matrices(model) if training.optimizer == "muon" else {}
    others = [parameter for parameter in parameters if parameter not in joints]
    adamw = torch.optim.AdamW(
        [
            _group([p for p in others if p.ndim >= 2], weight_decay=training.weight_decay),
            _group([p for p in others if p.ndim < 2], weight_decay=0.0),
        ],
        lr=training.learning_rate,
        betas=(training.beta1, second_moment_decay(training, tokens_per_step)),
        eps=training.epsilon,
        fused=all(p.device.type in _FUSED_DEVICES for p in parameters),
    )
    _create_state(adamw)
    if not joints:
        return adamw
    muon = training.muon
    own_rate = 1.0 if muon.learning_rate is None else muon.learning_rate / training.learning_rate
    decay = training.weight_decay if muon.weight_decay is None else muon.weight_decay
    rule = {"momentum": muon.momentum, "nesterov": muon.nesterov, "iterations": muon.iterations}
    groups = [_group(list(joints), weight_decay=decay, rate_factor=own_rate) | rule]
    products = torch.bfloat16 if precision is not None and precision.name == "bf16" else None
    return MuonAndAdamW(joints, groups, adamw, dtype=products)


def second_moment_decay(training: TrainingConfig, tokens_per_step: float) -> float:
    """beta2 per step: the set value, or the one with which weights halve every `beta2_half_life_tokens` tokens.

    Source: arXiv:2507.07101; the best half-life in tokens, unlike beta2, is constant over batch sizes.
    """
    if training.beta2_half_life_tokens is None:
        return training.beta2
    return float(0.5 ** (tokens_per_step / training.beta2_half_life_tokens))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, as a scalar tensor on their device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def update(optimizer: torch.optim.Optimizer, *, gradient_scale: float, learning_rate: float) -> None:
    """Multiply the gradients by a factor and take one step. Allocates no memory.

    Args:
        gradient_scale: Division by the token count and clipping in one factor, so the gradients are read once.
        learning_rate: That of the schedule; each group multiplies it by its own `rate_factor`.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    multiply_all(gradients, gradient_scale)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_factor"]
    optimizer.step()


def _group(parameters: list[Tensor], *, weight_decay: float, rate_factor: float = 1.0) -> dict[str, Any]:
    return {"params": parameters, "weight_decay": weight_decay, "rate_factor": rate_factor}


def _create_state(optimizer: torch.optim.AdamW) -> None:
    # The lazy state of the first step could run out of memory halfway, and a retry would find it incomplete.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                # Fused AdamW keeps the step count on the device, so that a step needs no transfer.
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else None),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
