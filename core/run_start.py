"""What has to hold before the first step, and the model as it is then."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.adapter_folder import base_hash, import_adapted, is_adapter
from core.checkpoint import MODEL_FILE, copy_weights, model_tensors, read_progress, restore_weights
from core.classifier import ModernClassifier, RobertaClassifier, take_encoder
from core.huggingface import holds_weights, import_huggingface
from core.language_model import LanguageModel
from core.lora import add_lora, lora_faults, merge_lora
from core.models import build_model
from core.precision import choose_precision
from core.run_config import RunConfig
from data_pipeline.token_blocks import PreparedCorpus
from data_pipeline.tokenizer import Vocabulary

WITHOUT_BASE = (
    "training.lora trains adapters of a model that is there already; give one as training.initial_weights (its folder) "
    "or start.weights_of, or leave training.lora out"
)


@dataclass(frozen=True)
class Beginning:
    """A checkpoint that a run begins with, instead of with fresh weights."""

    checkpoint: Path
    is_same_run: bool
    """True: the trunk of a run, which goes on where that was, with its tokens, position and statistics. False: the
    stage before, of which weights and optimizer are taken over."""


def fresh_model(run: RunConfig, data: PreparedCorpus, device: torch.device) -> LanguageModel:
    """The model of a run with its first weights: the same for a seed on every rank and kind of device.

    Raises:
        ValueError: `training.initial_weights` are of another model.
    """
    # Drawn on the CPU, so that a seed means the same weights on every kind of device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.training.seed)
        model = build_model(
            run.model, data.vocabulary.size, pad_id=data.vocabulary.pad_id, num_classes=run.objective.num_classes
        )
        if run.training.initial_weights is not None:
            _take_weights(Path(run.training.initial_weights), model)
        if run.training.lora is not None:
            precision = choose_precision(run.training.precision, device)
            add_lora(model, run.model, run.training.lora, frozen_dtype=precision.dtype)
    model = model.to(device)
    model.set_activation_checkpointing(run.training.activation_checkpointing)
    return model


def whole_model(run: RunConfig, vocabulary: Vocabulary, checkpoint: Path) -> LanguageModel:
    """The model that a run's checkpoint holds, in fp32; of adapters and their base, those merged into one.

    Raises:
        ValueError: The checkpoint, or `training.initial_weights`, is of another model.
    """
    model = build_model(run.model, vocabulary.size, pad_id=vocabulary.pad_id)
    if run.training.lora is None:
        restore_weights(checkpoint / MODEL_FILE, model)
        return model
    adapted = adapted_model(run, vocabulary, checkpoint)
    merge_lora(adapted)
    return adapted


def adapted_model(run: RunConfig, vocabulary: Vocabulary, checkpoint: Path) -> LanguageModel:
    """As `whole_model` of a run with LoRA, with the adapters beside their base."""
    lora, initial = run.training.lora, run.training.initial_weights
    assert lora is not None
    assert initial is not None
    model = build_model(run.model, vocabulary.size, pad_id=vocabulary.pad_id)
    _take_weights(Path(initial), model)
    add_lora(model, run.model, lora)
    restore_weights(checkpoint / MODEL_FILE, model)
    return model


def hash_of_base(run: RunConfig) -> str | None:
    """What tells the weights below a run's adapters from others; None without adapters."""
    if run.training.lora is None or run.training.initial_weights is None:
        return None
    return base_hash(Path(run.training.initial_weights))


def _take_weights(folder: Path, model: LanguageModel) -> None:
    """Those of a folder that transformers reads, if it is one, else of a checkpoint; a classifier the encoder's."""
    if is_adapter(folder) or (folder / "config.json").exists():
        loaded = import_adapted(folder)[0] if is_adapter(folder) else import_huggingface(folder)
        weights = _without_padding(model_tensors(loaded.model), num_tokens=model.tokens.num_embeddings)
    else:
        weights = load_file(folder / MODEL_FILE)
    if isinstance(model, RobertaClassifier | ModernClassifier):
        take_encoder(model, weights)
    else:
        copy_weights(weights, model, folder)


_ROWS_A_TOKEN = ("tokens.weight", "head_weight", "head_bias")
_PADDED_TO = 512
"""The largest multiple up to which vocabularies are rounded for speed; what is larger is another vocabulary."""


def _without_padding(weights: dict[str, Tensor], *, num_tokens: int) -> dict[str, Tensor]:
    """Without the rows at the end of a vocabulary that only fill it up to a round number: no token has their ids."""
    num_unused = weights["tokens.weight"].shape[0] - num_tokens
    if not 0 < num_unused < _PADDED_TO:
        return weights
    return {name: tensor[:num_tokens] if name in _ROWS_A_TOKEN else tensor for name, tensor in weights.items()}


def check_fit(run: RunConfig, data: PreparedCorpus) -> None:
    """Refuse settings that these rows cannot be trained with, all faults at once.

    Raises:
        ValueError: Rows longer than the model takes, or none.
    """
    faults = []
    if data.train.sequence_length > run.model.num_positions:
        faults.append(
            f"rows of the corpus have {data.train.sequence_length} tokens and the model takes "
            f"{run.model.num_positions} (model.sequence_length)"
        )
    initial = run.training.initial_weights
    if initial is not None and not holds_weights(Path(initial)) and not is_adapter(Path(initial)):
        faults.append(
            f"training.initial_weights={initial} holds no {MODEL_FILE} on this machine; give the folder of a model, "
            "such as the best/ of a sweep, where every worker can read it"
        )
    if run.training.lora is not None:
        faults += lora_faults(run.model, run.training.lora)
        if initial is None:
            faults.append(WITHOUT_BASE)
        elif is_adapter(Path(initial)):
            faults.append(
                f"training.initial_weights={initial} is an adapter, and training.lora begins with a whole model; make "
                "it one with pretune export"
            )
    if data.train.num_rows == 0:
        faults.append("the corpus has no training row")
    if data.holdout.num_rows == 0:
        faults.append("the corpus has no holdout row; raise corpus.holdout")
    if faults:
        raise ValueError("; ".join(faults))


_SETTINGS_WITHOUT_EFFECT = ("micro_batch_size", "on_oom", "activation_checkpointing", "compile")
"""Settings of training that change speed and memory, and not what is learnt."""


def settings_that_count(run: RunConfig) -> dict[str, Any]:
    """The settings that decide what is learnt: two runs with the same may go on from each other's checkpoint."""
    settings = run.model_dump(mode="json")
    for name in _SETTINGS_WITHOUT_EFFECT:
        del settings["training"][name]
    if settings["training"]["lora"] is not None:
        del settings["training"]["lora"]["recompute_feed_forward"]
    return settings


def check_same_run(checkpoint: Path, run: RunConfig, data: PreparedCorpus) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ValueError: Naming every setting that differs.
    """
    saved = read_progress(checkpoint)
    faults = _differences(saved["settings"], settings_that_count(run), path="")
    if saved["data"] != data.fingerprint:
        faults.append(f"data {saved['data']} there and {data.fingerprint} here")
    faults += _faults_of_base(saved, run)
    if faults:
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(faults)}. "
            "Give this run a folder of its own, or remove that one."
        )


_LENGTH_OF_A_RUN = ("tokens", "epochs", "schedule", "warmup", "cooldown", "floor")
"""Settings in which a run may differ from its trunk: how long it is, and how it ends."""


def check_trunk(checkpoint: Path, run: RunConfig, data: PreparedCorpus) -> None:
    """Refuse to go on from the trunk of a run that is not the same but for its length.

    Raises:
        ValueError: Naming every setting that differs, or saying that the trunk is longer than what is asked for.
    """
    saved = read_progress(checkpoint)
    here = settings_that_count(run)
    # Where a trunk's own weights came from is its affair.
    for name in (*_LENGTH_OF_A_RUN, "initial_weights"):
        here["training"][name] = saved["settings"]["training"].get(name)
    faults = _differences(saved["settings"], here, path="")
    if saved["data"] != data.fingerprint:
        faults.append(f"data {saved['data']} there and {data.fingerprint} here")
    faults += _faults_of_base(saved, run)
    tokens = saved["progress"]["tokens"]
    if run.training.tokens is not None and tokens >= run.training.tokens:
        faults.append(f"it has {tokens:,} tokens already, and training.tokens={run.training.tokens:,} asks for no more")
    if faults:
        raise ValueError(f"{checkpoint} cannot be gone on from: {'; '.join(faults)}")


def _faults_of_base(saved: dict[str, Any], run: RunConfig) -> list[str]:
    there, here = saved.get("base"), hash_of_base(run)
    if there == here:
        return []
    return [
        f"its adapters were trained on other weights than those in {run.training.initial_weights} now (SHA-256 "
        f"{str(there)[:12]} there and {str(here)[:12]} here)"
    ]


def _differences(saved: dict[str, Any], now: dict[str, Any], *, path: str) -> list[str]:
    faults = []
    for name in {**saved, **now}:
        there, here = saved.get(name), now.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            faults += _differences(there, here, path=f"{path}{name}.")
        elif there != here:
            faults.append(f"{path}{name} is {there} there and {here} here")
    return faults
