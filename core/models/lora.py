"""LoRA for all models: select matrices, freeze the rest, add adapters, merge them again."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import nn

from core.layers.feed_forward import Gated, Plain, feed_forward_kind
from core.layers.low_rank import LowRankLinear, Part
from core.layers.transformer_parts import Attention, Linear
from core.models.huggingface_names import Form, form_of
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model, without_values
from core.settings.model_config import ModelConfig
from core.settings.training_config import LoraConfig

_NAMES: dict[Form, dict[str, tuple[str, ...]]] = {
    "llama": {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "out": ("o_proj",),
        "gate_and_up": ("gate_proj", "up_proj"),
        "up": ("up_proj",),
        "down": ("down_proj",),
    },
    "roberta": {
        "qkv": ("query", "key", "value"),
        "out": ("attention.output.dense",),
        "gate_and_up": ("gate.dense", "intermediate.dense"),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
    },
    "modern": {"qkv": ("Wqkv",), "out": ("attn.Wo",), "gate_and_up": ("Wi",), "up": ("Wi",), "down": ("mlp.Wo",)},
}
"""Our matrix -> name endings of its parts in transformers, in row order."""

_OF_ATTENTION = ("qkv", "out")
_GROUPS = ("all-linear", "attention", "feed-forward")


def lora_faults(model: ModelConfig, lora: LoraConfig) -> list[str]:
    """Error messages, with remedies, if a model of this shape cannot have these adapters; empty if it can."""
    sizes = _matrix_sizes(model)
    chosen = lora.targets.split(",")
    unknown = [target for target in chosen if target not in (*sizes, *_GROUPS)]
    faults = []
    if unknown:
        faults.append(
            f"training.lora.targets={lora.targets} names {', '.join(map(repr, unknown))}, which this model lacks; use "
            f"{', '.join(sizes)}, or a group: {', '.join(_GROUPS)}"
        )
    names = [name for name in sizes if name in _chosen_names(model, lora)]
    if not names and not unknown:
        faults.append(
            f"training.lora.targets={lora.targets} names no matrix of a model with feed_forward: "
            f"{feed_forward_kind(model)}; use attention"
        )
    smallest = min(names, key=lambda name: min(sizes[name]), default=None)
    if smallest is not None and lora.rank > min(sizes[smallest]):
        rows, columns = sizes[smallest]
        faults.append(
            f"training.lora.rank={lora.rank} is above the size of {smallest}, {rows} x {columns}: the adapter would be "
            f"larger than the matrix; use at most {min(rows, columns)}"
        )
    return faults


def add_lora(
    model: LanguageModel, config: ModelConfig, lora: LoraConfig, *, frozen_dtype: torch.dtype = torch.float32
) -> None:
    """Freeze a model and add adapters to its matrices, drawn from torch's global random state.

    Args:
        frozen_dtype: Format of the frozen matrices. With autocast's format, the products are the same, with less
            memory and without a cast per pass.
    """
    model.requires_grad_(False)
    wanted = _chosen_names(config, lora)
    for owner, attribute, parts in list(_matrices(model, config)):
        chosen = [part for part in parts if part.name in wanted]
        if chosen:
            linear = getattr(owner, attribute)
            setattr(owner, attribute, LowRankLinear(linear, chosen, rank=lora.rank, scale=lora.scale))
    if frozen_dtype != torch.float32:
        for name, module in model.named_modules():
            # Routers compute in fp32.
            if isinstance(module, Linear | LowRankLinear) and not name.endswith(".router"):
                module.weight.data = module.weight.data.to(frozen_dtype)
    model.set_recomputed_feed_forward(lora.recompute_feed_forward)


def merge_lora(model: LanguageModel) -> None:
    """Merge the adapters of a model in fp32 into its matrices, in place; the function of the model stays the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRankLinear):
                rows, columns = child.weight.shape
                with without_values():
                    linear = Linear(columns, rows, bias=child.bias is not None)
                linear.weight = nn.Parameter(child.merged_weight())
                if child.bias is not None:
                    linear.bias = nn.Parameter(child.bias.detach())
                setattr(module, name, linear)
    model.requires_grad_(True)
    model.set_recomputed_feed_forward(False)


def adapted_matrices(model: LanguageModel) -> dict[str, LowRankLinear]:
    """The adapted matrices of a model, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def part_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Name endings of the parts of our matrices in transformers models of this form, by our name."""
    return _NAMES[form_of(config)]


def _chosen_names(config: ModelConfig, lora: LoraConfig) -> set[str]:
    found: set[str] = set()
    for target in lora.targets.split(","):
        if target in _GROUPS:
            for ours, names in _NAMES[form_of(config)].items():
                if target == "all-linear" or (target == "attention") == (ours in _OF_ATTENTION):
                    found |= set(names)
        else:
            found.add(target)
    return found


@lru_cache(maxsize=64)
def _matrix_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of all adaptable matrices, by name; all layers are equal."""
    with without_values():
        model = build_model(config.model_copy(update={"layers": 1, "equal_in": None}), vocabulary_size=8)
    return {
        part.name: (part.last_row - part.first_row, getattr(owner, attribute).weight.shape[1])
        for owner, attribute, parts in _matrices(model, config)
        for part in parts
    }


def _matrices(model: LanguageModel, config: ModelConfig) -> Iterator[tuple[nn.Module, str, list[Part]]]:
    """(owner module, attribute name, parts) of all adaptable matrices."""
    for module in model.modules():
        if isinstance(module, Attention | Plain | Gated):
            for attribute, child in module.named_children():
                if isinstance(child, Linear | LowRankLinear):
                    yield module, attribute, _parts(attribute, child.weight.shape[0], config)


def _parts(ours: str, num_rows: int, config: ModelConfig) -> list[Part]:
    names = _NAMES[form_of(config)][ours]
    if ours == "qkv" and len(names) > 1:
        head_dim = config.width // config.heads
        sizes = [head_dim * heads for heads in (config.heads, *2 * (config.kv_heads or config.heads,))]
    else:
        sizes = [num_rows // len(names)] * len(names)
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [Part(name, end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)]
