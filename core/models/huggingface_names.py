"""Map our tensors to those of Hugging Face transformers, and back: RoBERTa, ModernBERT, Llama.

Our modules join related matrices (queries, keys and values; gate and up); transformers mostly separates them. One
table per form lists the tensors of transformers that make up each of ours; both directions use it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.settings.model_config import ModelConfig

Form = Literal["roberta", "modern", "llama"]

ARCHITECTURES: dict[Form, str] = {
    "roberta": "RobertaForMaskedLM",
    "modern": "ModernBertForMaskedLM",
    "llama": "LlamaForCausalLM",
}
"""Transformers class of each form."""

CLASSIFIERS: dict[Form, str] = {
    "roberta": "RobertaForSequenceClassification",
    "modern": "ModernBertForSequenceClassification",
}
"""Transformers class of the classifier of each form; decoders have none."""

_Names = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class _ClassifierHead:
    replaced: str
    """Name prefix of the tensors of the masked LM head that a classifier lacks."""
    names: _Names


_CLASSIFIER_HEADS: dict[Form, _ClassifierHead] = {
    "roberta": _ClassifierHead(
        "head_",
        {
            "head_dense.weight": "classifier.dense.weight",
            "head_dense.bias": "classifier.dense.bias",
            "head_weight": "classifier.out_proj.weight",
            "head_bias": "classifier.out_proj.bias",
        },
    ),
    "modern": _ClassifierHead("head_bias", {"head_weight": "classifier.weight", "head_bias": "classifier.bias"}),
}


def form_of(config: ModelConfig) -> Form:
    """Form of a model in transformers."""
    return "llama" if config.is_causal else config.form


def to_huggingface(state: dict[str, Tensor], config: ModelConfig, *, is_classifier: bool = False) -> dict[str, Tensor]:
    """A state dict of our model with the names and shapes of transformers; all tensors are CPU copies."""
    tensors: dict[str, Tensor] = {}
    for ours, theirs in name_table(config, is_classifier=is_classifier).items():
        parts = torch.split(state[ours].detach().cpu(), _part_sizes(state[ours], theirs, config))
        tensors |= {
            name: part.clone(memory_format=torch.contiguous_format) for name, part in zip(theirs, parts, strict=True)
        }
    if "lm_head.decoder.bias" in tensors:
        # An untied RobertaForMaskedLM has two biases and reads only that of the decoder.
        tensors["lm_head.bias"] = tensors["lm_head.decoder.bias"].clone()
    return tensors


def from_huggingface(
    tensors: dict[str, Tensor], config: ModelConfig, *, is_classifier: bool = False
) -> dict[str, Tensor]:
    """Tensors of transformers as a state dict of our model. Works for weights and gradients.

    Raises:
        ValueError: Tensors are missing; the message names the first of them.
    """
    table = name_table(config, is_classifier=is_classifier)
    missing = [name for names in table.values() for name in names if name not in tensors]
    if missing:
        architecture = (CLASSIFIERS if is_classifier else ARCHITECTURES)[form_of(config)]
        raise ValueError(
            f"{architecture}: {len(missing)} tensors are missing, first {missing[:3]}; save the model again"
        )
    return {ours: torch.cat([tensors[name] for name in theirs]) for ours, theirs in table.items()}


def name_table(config: ModelConfig, *, is_classifier: bool = False) -> dict[str, tuple[str, ...]]:
    """Name of each of our tensors -> names of the transformers tensors that form it, concatenated along dimension 0."""
    form = form_of(config)
    table = {"roberta": _roberta_names, "modern": _modern_names, "llama": _llama_names}[form](config)
    if is_classifier:
        head = _CLASSIFIER_HEADS[form]
        table = {ours: theirs for ours, theirs in table.items() if not ours.startswith(head.replaced)} | head.names
    return {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in table.items()}


def _roberta_names(config: ModelConfig) -> _Names:
    names: _Names = {
        "tokens.weight": "roberta.embeddings.word_embeddings.weight",
        "positions.weight": "roberta.embeddings.position_embeddings.weight",
        "token_type.weight": "roberta.embeddings.token_type_embeddings.weight",
        "head_bias": "lm_head.bias" if config.tied_embeddings else "lm_head.decoder.bias",
    }
    modules: _Names = {
        "embedding_norm": "roberta.embeddings.LayerNorm",
        "head_dense": "lm_head.dense",
        "head_norm": "lm_head.layer_norm",
    }
    for number in range(config.layers):
        ours, theirs = f"layers.{number}", f"roberta.encoder.layer.{number}"
        modules |= {
            f"{ours}.attention.qkv": tuple(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")),
            f"{ours}.attention.out": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.feed_forward.up": f"{theirs}.intermediate.dense",
            f"{ours}.feed_forward.down": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    for ours, theirs_of_module in modules.items():
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = (
                f"{theirs_of_module}.{kind}"
                if isinstance(theirs_of_module, str)
                else tuple(f"{part}.{kind}" for part in theirs_of_module)
            )
    return names | _untied(config, "lm_head.decoder.weight")


def _modern_names(config: ModelConfig) -> _Names:
    names: _Names = {
        "tokens.weight": "model.embeddings.tok_embeddings.weight",
        "embedding_norm.weight": "model.embeddings.norm.weight",
        "final_norm.weight": "model.final_norm.weight",
        "head_dense.weight": "head.dense.weight",
        "head_norm.weight": "head.norm.weight",
        "head_bias": "decoder.bias",
    }
    for number in range(config.layers):
        ours, theirs = f"layers.{number}", f"model.layers.{number}"
        names |= {
            f"{ours}.attention.qkv.weight": f"{theirs}.attn.Wqkv.weight",
            f"{ours}.attention.out.weight": f"{theirs}.attn.Wo.weight",
            f"{ours}.feed_forward_norm.weight": f"{theirs}.mlp_norm.weight",
            f"{ours}.feed_forward.gate_and_up.weight": f"{theirs}.mlp.Wi.weight",
            f"{ours}.feed_forward.down.weight": f"{theirs}.mlp.Wo.weight",
        }
        if number > 0:
            names[f"{ours}.attention_norm.weight"] = f"{theirs}.attn_norm.weight"
    return names | _untied(config, "decoder.weight")


def _llama_names(config: ModelConfig) -> _Names:
    names: _Names = {"tokens.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    for number in range(config.layers):
        ours, theirs = f"layers.{number}", f"model.layers.{number}"
        names |= {
            f"{ours}.attention_norm.weight": f"{theirs}.input_layernorm.weight",
            f"{ours}.attention.qkv.weight": tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"),
            f"{ours}.attention.out.weight": f"{theirs}.self_attn.o_proj.weight",
            f"{ours}.feed_forward_norm.weight": f"{theirs}.post_attention_layernorm.weight",
            f"{ours}.feed_forward.gate_and_up.weight": (
                f"{theirs}.mlp.gate_proj.weight",
                f"{theirs}.mlp.up_proj.weight",
            ),
            f"{ours}.feed_forward.down.weight": f"{theirs}.mlp.down_proj.weight",
        }
    return names | _untied(config, "lm_head.weight")


def _untied(config: ModelConfig, theirs: str) -> _Names:
    return {} if config.tied_embeddings else {"head_weight": theirs}


def _part_sizes(ours: Tensor, theirs: tuple[str, ...], config: ModelConfig) -> list[int]:
    """Number of rows of each transformers tensor in one of ours."""
    if len(theirs) == 3:
        head_dim = config.width // config.heads
        kv_rows = (config.kv_heads or config.heads) * head_dim
        return [config.heads * head_dim, kv_rows, kv_rows]
    return [ours.shape[0] // len(theirs)] * len(theirs)
