"""Convert ModelConfig to and from transformers' config.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.layers.feed_forward import feed_forward_kind, inner_width
from core.models.huggingface_names import ARCHITECTURES, CLASSIFIERS, form_of
from core.settings.model_config import ModelConfig
from data_pipeline.files.json_files import read_json
from data_pipeline.tokens.tokenizer import Vocabulary

_MODEL_TYPES = {"roberta": "roberta", "modern": "modernbert", "llama": "llama"}

_MOST_LAYERS = 1000
"""Each layer takes memory before its weights are read, and a config.json may name any number."""

OUR_ACTIVATION = {"geglu": "gelu", "swiglu": "silu"}


def read_config(folder: Path) -> dict[str, Any]:
    """Contents of config.json, with transformers' names.

    Raises:
        ValueError: The file is missing or not a JSON object.
    """
    try:
        theirs = read_json(folder / "config.json")
    except (OSError, ValueError) as cause:
        raise ValueError(
            f"{folder} has no readable config.json: {cause}; give a folder written by save_pretrained"
        ) from cause
    if not isinstance(theirs, dict):
        raise ValueError(f"{folder / 'config.json'} is not a JSON object; give a folder written by save_pretrained")
    return theirs


def read_shape(folder: Path) -> tuple[ModelConfig, int]:
    """(shape of the model in a transformers folder, its vocabulary size), without reading its weights.

    Raises:
        ValueError: As `import_huggingface`.
    """
    theirs = read_config(folder)
    vocabulary_size = theirs["vocab_size"]
    if not isinstance(vocabulary_size, int):
        raise ValueError(f"{folder / 'config.json'} has a vocab_size that is no number: {vocabulary_size!r:.100}")
    return our_config(theirs, folder), vocabulary_size


def huggingface_config(config: ModelConfig, vocabulary: Vocabulary, num_embeddings: int) -> dict[str, Any]:
    """Contents of config.json for a model of ours.

    Args:
        num_embeddings: Rows of the embedding table.
    """
    form = form_of(config)
    common = {
        "architectures": [ARCHITECTURES[form]],
        "model_type": _MODEL_TYPES[form],
        "vocab_size": num_embeddings,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": inner_width(config),
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
    }
    if form == "roberta":
        return common | {
            "hidden_act": "gelu",
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout,
            "max_position_embeddings": config.num_positions + vocabulary.pad_id + 1,
            "type_vocab_size": 1,
            "layer_norm_eps": config.norm_epsilon,
            "pad_token_id": vocabulary.pad_id,
        }
    activation = OUR_ACTIVATION[feed_forward_kind(config)]
    rope = {"rope_type": "default", "rope_theta": config.rotary_base}
    if form == "modern":
        return common | {
            "hidden_activation": activation,
            "max_position_embeddings": config.num_positions,
            "norm_eps": config.norm_epsilon,
            "attention_dropout": config.dropout,
            "embedding_dropout": config.dropout,
            "mlp_dropout": config.dropout,
            "layer_types": ["full_attention"] * config.layers,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
            "pad_token_id": vocabulary.pad_id,
            "cls_token_id": vocabulary.bos_id,
            "sep_token_id": vocabulary.eos_id,
        }
    return common | {
        "hidden_act": activation,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.width // config.heads,
        "max_position_embeddings": config.num_positions,
        "rms_norm_eps": config.norm_epsilon,
        "attention_dropout": config.dropout,
        "rope_parameters": rope,
        # No padding id: transformers would freeze that row of the embeddings, and here it may be </s>.
        "pad_token_id": None,
    }


def classifier_config(config: ModelConfig, classes: Sequence[str]) -> dict[str, Any]:
    """Additional contents of config.json for a classifier."""
    form = form_of(config)
    names = {str(number): name for number, name in enumerate(classes)}
    return {
        "architectures": [CLASSIFIERS[form]],
        "id2label": names,
        "label2id": {name: int(number) for number, name in names.items()},
        "problem_type": "single_label_classification",
        "classifier_dropout": config.dropout,
    } | ({"classifier_pooling": "cls"} if form == "modern" else {})


def classes_of(theirs: dict[str, Any]) -> tuple[str, ...]:
    """Class names of a classifier in order of class number; empty for other models.

    Args:
        theirs: From `read_config`.
    """
    if not set(theirs.get("architectures") or ()) & set(CLASSIFIERS.values()):
        return ()
    names = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(names[number] for number in sorted(names, key=int))


def our_config(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    """ModelConfig of a transformers model.

    Args:
        theirs: From `read_config`.
        folder: Named in errors.

    Raises:
        ValueError: The model has a feature that pretune does not support; all of them are named. Or a value is of the
            wrong kind.
        KeyError: A value is missing.
    """
    try:
        return _config_of(theirs, folder)
    except (TypeError, AttributeError, ArithmeticError) as cause:
        raise ValueError(
            f"{folder / 'config.json'} has a value of the wrong kind: {cause}; give a folder written by save_pretrained"
        ) from cause


def _config_of(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    forms = {model_type: form for form, model_type in _MODEL_TYPES.items()}
    form = forms.get(theirs.get("model_type", ""))
    if form is None:
        raise ValueError(
            f"{folder} holds a model of type {theirs.get('model_type')!r}, which pretune does not support; use one of "
            f"{', '.join(forms)}"
        )
    activation = str(theirs.get("hidden_activation" if form == "modern" else "hidden_act"))
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    ropes = _ropes(theirs, form)
    # Setting -> (value, supported values). Supported values are those that ModelConfig implies.
    foreign = {
        "activation": (activation, ("gelu",) if form == "roberta" else tuple(OUR_ACTIVATION.values())),
        "type_vocab_size": (theirs.get("type_vocab_size", 1), (1,)),
        "attention_bias": (bool(theirs.get("attention_bias", False)), (False,)),
        "mlp_bias": (bool(theirs.get("mlp_bias", False)), (False,)),
        "norm_bias": (bool(theirs.get("norm_bias", False)), (False,)),
        "head_dim": (theirs.get("head_dim") or width // heads, (width // heads,)),
        "rope_type": (
            ", ".join(sorted({rope.get("rope_type", "default") for rope in ropes})) or "default",
            ("default",),
        ),
        "classifier_pooling": (theirs.get("classifier_pooling", "cls") if classes_of(theirs) else "cls", ("cls",)),
        "layer_types": (set(theirs.get("layer_types") or ()) <= {"full_attention"}, (True,)),
        "has a rope_theta": (form == "roberta" or bool(ropes), (True,)),
    }
    faults = [f"{name}={has!r} instead of {wants[0]!r}" for name, (has, wants) in foreign.items() if has not in wants]
    layers = theirs["num_hidden_layers"]
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        faults.append(f"num_hidden_layers={layers} instead of at most {_MOST_LAYERS}")
    if faults:
        raise ValueError(
            f"pretune does not support the model in {folder}: {'; '.join(faults)}; give a model without these features"
        )
    kinds = {activation: kind for kind, activation in OUR_ACTIVATION.items()}
    positions = theirs["max_position_embeddings"] - (theirs["pad_token_id"] + 1 if form == "roberta" else 0)
    return ModelConfig(
        family="decoder" if form == "llama" else "encoder",
        form="modern" if form == "modern" else "roberta",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=theirs.get("num_key_value_heads") if form == "llama" else None,
        feed_forward="gelu" if form == "roberta" else kinds[activation],
        feed_forward_width=theirs["intermediate_size"],
        sequence_length=positions,
        rotary_base=ropes[0]["rope_theta"] if ropes else 10_000.0,
        norm_epsilon=theirs[{"roberta": "layer_norm_eps", "modern": "norm_eps", "llama": "rms_norm_eps"}[form]],
        tied_embeddings=theirs.get("tie_word_embeddings", form != "llama"),
    )


def _ropes(theirs: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """Rotary settings of the attention layers; older Llama folders store them as rope_theta."""
    if form == "roberta":
        return []
    parameters = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if form == "modern":
        parameters = parameters.get("full_attention", {})
        parameters = {"rope_theta": theirs.get("global_rope_theta", 160_000.0)} | parameters
    else:
        parameters = {"rope_theta": theirs.get("rope_theta", 10_000.0)} | parameters
    return [parameters]
