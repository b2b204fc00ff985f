"""AdamW, or Muon with AdamW, with its state allocated from the start; and the gradient norm."""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from core.models.language_model import LanguageModel, Scaling
from core.models.layer_matrices import layer_matrices
from core.settings.precision import Precision
from core.settings.schedule import decay_per_step
from core.settings.training_config import TrainingConfig
from core.step.muon import MuonAndAdamW
from core.torch_internals.unlisted_kernels import multiply_all

_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(
    model: LanguageModel,
    training: TrainingConfig,
    *,
    tokens_per_step: float,
    total_tokens: float | None = None,
    precision: Precision | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters of a model, on their device; fused where the device supports it.

    Weight decay applies to matrices only, not to biases and the gains of norms.

    Args:
        tokens_per_step: Tokens of a global batch, for `training.beta2_half_life_tokens`.
        total_tokens: Tokens of the training, for `training.weight_decay_timescale`. None: the decay does not matter.
        precision: Number format of the run; Muon multiplies matrices in bf16 if this is bf16. None: in that of the
            weights.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decay = training.weight_decay
    if total_tokens is not None:
        decay = decay_per_step(training, total_tokens=total_tokens, tokens_per_step=tokens_per_step)
    joints = layer_matrices(model) if training.optimizer == "muon" else {}
    scaled = [(parameter, model.scalings.get(name, Scaling())) for name, parameter in named.items()]
    others = [(parameter, scaling) for parameter, scaling in scaled if parameter not in joints]
    vectors = [(parameter, scaling) for parameter, scaling in others if parameter.ndim < 2]
    matrices = [(parameter, scaling) for parameter, scaling in others if parameter.ndim >= 2]
    adamw = torch.optim.AdamW(
        [
            *_groups(matrices, attrgetter("rate"), epsilon=training.epsilon, weight_decay=decay),
            *_groups(vectors, attrgetter("rate"), epsilon=training.epsilon),
        ],
        lr=training.learning_rate,
        betas=(training.beta1, second_moment_decay(training, tokens_per_step)),
        fused=all(p.device.type in _FUSED_DEVICES for p in named.values()),
    )
    _create_state(adamw)
    if not joints:
        return adamw
    muon = training.muon
    own_rate = 1.0 if muon.learning_rate is None else muon.learning_rate / training.learning_rate
    if muon.weight_decay is not None:
        decay = muon.weight_decay
    elif training.weight_decay_timescale is not None:
        decay /= own_rate  # The time scale is that of rate times decay.
    groups = _groups(
        [(parameter, scaling) for parameter, scaling in scaled if parameter in joints],
        attrgetter("muon_rate"),
        rate=own_rate,
        weight_decay=decay,
    )
    rule = {"momentum": muon.momentum, "nesterov": muon.nesterov, "iterations": muon.iterations}
    products = torch.bfloat16 if precision is not None and precision.name == "bf16" else None
    return MuonAndAdamW(joints, [group | rule for group in groups], adamw, dtype=products)


def second_moment_decay(training: TrainingConfig, tokens_per_step: float) -> float:
    """beta2 per step: the set value, or the one with which weights halve every `beta2_half_life_tokens` tokens.

    Source: arXiv:2507.07101; the best half-life in tokens, unlike beta2, is constant over batch sizes.
    """
    if training.beta2_half_life_tokens is None:
        return training.beta2
    return float(0.5 ** (tokens_per_step / training.beta2_half_life_tokens))


def follow_batch(optimizer: torch.optim.Optimizer, training: TrainingConfig, *, before: float, now: float) -> None:
    """Keep the settings that count in tokens where they are when the tokens of a global batch change.

    Args:
        before: Tokens of a global batch until now; `now` those from now on.
    """
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (training.beta1, second_moment_decay(training, now))
        if training.weight_decay_timescale is not None:
            group["weight_decay"] *= now / before


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


def _groups(
    scaled: Sequence[tuple[nn.Parameter, Scaling]],
    factor_of: Callable[[Scaling], float],
    *,
    rate: float = 1.0,
    epsilon: float = 0.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups of parameters with equal settings; one, perhaps empty, for parameters without scalings.

    Args:
        factor_of: The factor of a scaling on the learning rate; the decay is divided by it.
        rate: Learning rate over that of the schedule.
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {} if scaled else {(1.0, 1.0): []}
    for parameter, scaling in scaled:
        found.setdefault((factor_of(scaling), scaling.epsilon), []).append(parameter)
    return [
        {
            "params": parameters,
            "rate_factor": rate * factor,
            "weight_decay": weight_decay / factor,
            "eps": epsilon * of_epsilon,
        }
        for (factor, of_epsilon), parameters in found.items()
    ]


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
