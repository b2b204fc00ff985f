"""Maximal update parametrization: initial values and learning rates relative to a base of another width and depth.

A learning rate that is best for the base is then best for wider models too. With m = width / base width, matrices that
read features begin smaller by the root of m, and AdamW changes them by a learning rate divided by m. Logits are divided
by m, and the branches of layers by layers / base layers. The factors on logits and branches lie in the weights
themselves, in their initial values and rates: with Adam this trains the same function as a factor in the forward pass,
and the model stays one of the standard form, in memory and in exported files. Attention needs no factor, because the
base has heads of the same width.

Sources: Tensor Programs V, arXiv:2203.03466 (table 8); depth, epsilon and decay: CompleteP, arXiv:2505.01618. For Muon,
whose updates have a spectral norm that grows with the root of the width at a constant root mean square, the rate falls
with the root of m (arXiv:2310.17813).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.layers.feed_forward import Gated, Plain
from core.layers.mixture import Mixture
from core.layers.transformer_parts import Attention
from core.models.decoder import LlamaDecoder
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.models.language_model import LanguageModel, Scaling
from core.settings.model_config import ModelConfig


@dataclass(frozen=True)
class _Rule:
    parameter: Tensor
    initial: float
    """Factor on the initial values."""
    scaling: Scaling


def scale_from_base(model: LanguageModel, config: ModelConfig) -> None:
    """Scale the initial values of a new model from its base, and tell the model the factors on its learning rates."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for rule in _rules(model, config):
            rule.parameter.mul_(rule.initial)
            model.scalings[names[rule.parameter]] = rule.scaling


def _rules(model: LanguageModel, config: ModelConfig) -> Iterator[_Rule]:
    wider = config.width / config.mup_base_width
    branch = 1.0 if config.mup_base_layers is None else config.mup_base_layers / config.layers

    def inside(matrix: Tensor) -> _Rule:
        """A matrix from features to features. Gradients are smaller by the factors that they pass."""
        return _Rule(matrix, wider**-0.5, Scaling(1 / wider, muon_rate=wider**-0.5, epsilon=branch / wider))

    def at_the_end(matrix: Tensor) -> _Rule:
        """The last matrix of a branch, which holds the factor of the branch."""
        scaling = Scaling(branch / wider, muon_rate=branch * wider**-0.5, epsilon=1 / wider)
        return _Rule(matrix, branch * wider**-0.5, scaling)

    for module in model.layers.modules():
        match module:
            case Attention():
                yield inside(module.qkv.weight)
                yield at_the_end(module.out.weight)
            case Plain():
                yield inside(module.up.weight)
                yield at_the_end(module.down.weight)
            case Gated():
                yield inside(module.gate_and_up.weight)
                yield at_the_end(module.down.weight)
            case Mixture():
                # Logits of experts, like those of tokens.
                yield _Rule(module.router.weight, 1 / wider, Scaling(1 / wider))
                yield inside(module.gate_and_up_EDF)
                yield at_the_end(module.down_EFD)
                if module.shared_gate_and_up is not None and module.shared_down is not None:
                    yield inside(module.shared_gate_and_up.weight)
                    yield at_the_end(module.shared_down.weight)
    if isinstance(model, RobertaEncoder | ModernEncoder):
        yield _Rule(model.head_dense.weight, wider**-0.5, Scaling(1 / wider, epsilon=1 / wider))
        last_norm: nn.Module = model.head_norm
    else:
        assert isinstance(model, LlamaDecoder)
        last_norm = model.final_norm
    # The norm before the vocabulary matrix divides the logits, so that a tied embedding keeps its own scale.
    for parameter in last_norm.parameters():
        yield _Rule(parameter, 1 / wider, Scaling(1 / wider))
    yield _Rule(model.tokens.weight, 1.0, Scaling(1.0, epsilon=1 / wider))
