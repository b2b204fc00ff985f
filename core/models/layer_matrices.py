"""The weight matrices of a model's layers, and how several lie in one parameter."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.layers.feed_forward import Gated, Plain
from core.layers.mixture import Mixture
from core.layers.product_key_memory import ProductKeyMemory
from core.layers.transformer_parts import Attention
from core.models.language_model import LanguageModel


@dataclass(frozen=True)
class Joint:
    """How matrices lie in one parameter. In a 3-D parameter they also lie along its first dimension."""

    dim: int = 0
    sizes: tuple[int, ...] | None = None
    """Sizes of the matrices along `dim`. None: the parameter is not divided along it."""

    def matrices(self, tensor: Tensor) -> Iterator[Tensor]:
        """Views of the 2-D matrices in the parameter, or in a tensor of its shape."""
        for part in (tensor,) if self.sizes is None else torch.split(tensor, list(self.sizes), self.dim):
            yield from part.unbind() if part.ndim == 3 else (part,)


def layer_matrices(model: LanguageModel) -> dict[Tensor, Joint]:
    """The trained matrices of the layers that map features to features, in the order of the model.

    Not among them: embeddings and heads, routers (a row belongs to one expert, whose share of the tokens its gradient
    follows), and the keys and values of memories (looked up like embeddings).
    """
    found = {}
    for module in model.layers.modules():
        for matrix, joint in _matrices_of(module):
            if matrix.requires_grad:
                found[matrix] = joint
    return found


def _matrices_of(module: nn.Module) -> Iterator[tuple[Tensor, Joint]]:
    match module:
        case Attention():
            sizes = tuple(module.head_dim * heads for heads in (module.heads, module.kv_heads, module.kv_heads))
            yield module.qkv.weight, Joint(sizes=sizes)
            yield module.out.weight, Joint()
        case Plain():
            yield module.up.weight, Joint()
            yield module.down.weight, Joint()
        case Gated():
            yield module.gate_and_up.weight, _halves(module.gate_and_up.weight, dim=0)
            yield module.down.weight, Joint()
        case Mixture():
            yield module.gate_and_up_EDF, _halves(module.gate_and_up_EDF, dim=2)
            yield module.down_EFD, Joint()
            if module.shared_gate_and_up is not None and module.shared_down is not None:
                yield module.shared_gate_and_up.weight, _halves(module.shared_gate_and_up.weight, dim=0)
                yield module.shared_down.weight, Joint()
        case ProductKeyMemory():
            yield module.query.weight, Joint()


def _halves(parameter: Tensor, *, dim: int) -> Joint:
    return Joint(dim, (parameter.shape[dim] // 2,) * 2)
