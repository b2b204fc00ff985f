"""LoRA adapters on disk in PEFT's format, written and read without PEFT.

Files: adapter_config.json, adapter_model.safetensors. The config names the folder of the base model; the header of the
weights contains the hash of the base weights, so that an adapter is never merged into another model unnoticed.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.model_files.huggingface import Loaded, holds_weights, import_huggingface, read_weights, weight_files
from core.model_files.safetensors_files import read_tensors
from core.models.huggingface_names import name_table
from core.models.language_model import LanguageModel
from core.models.lora import adapted_matrices, part_names
from core.settings.model_config import ModelConfig
from core.settings.training_config import LoraConfig
from data_pipeline.files.json_files import read_json

CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HASH = "base_sha256"

_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}
"""PEFT features that pretune does not support: each setting, with the values that disable it."""


def base_hash(folder: Path) -> str:
    """SHA-256 of the weights in a model folder, in hexadecimal.

    Raises:
        ValueError: The folder has no weights.
    """
    whole = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                whole.update(chunk)
    return whole.hexdigest()


def is_adapter(folder: Path) -> bool:
    """True if a folder holds an adapter instead of a whole model."""
    return (folder / CONFIG_FILE).is_file()


def save_adapter(model: LanguageModel, config: ModelConfig, lora: LoraConfig, base: Path, folder: Path) -> None:
    """Write the adapters of a model, for `PeftModel.from_pretrained(base_model, folder)`.

    Args:
        base: Transformers folder of the model that the adapters were trained on.
    """
    table = name_table(config)
    tensors: dict[str, Tensor] = {}
    for ours, matrix in adapted_matrices(model).items():
        theirs = table[f"{ours}.weight"]
        known = part_names(config)[ours.rsplit(".", 1)[-1]]
        for part, (down, up) in matrix.matrices().items():
            name = _PREFIX + theirs[known.index(part.name)].removesuffix(".weight")
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / _WEIGHTS_FILE, metadata={"format": "pt", _HASH: base_hash(base)})
    modules = sorted({name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.is_causal else None,
        "base_model_name_or_path": str(base.absolute()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": _shortened(modules, config),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def import_adapted(folder: Path) -> tuple[Loaded, Path]:
    """(base model with the adapter merged into it, folder of the base model).

    Raises:
        ValueError: The adapter is unsupported, its base is missing, or its base differs from the one it was trained on.
    """
    adapter = _read(folder)
    weights = read_weights(adapter.base)
    faults = list(_merge(adapter, weights))
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(
            f"the adapter in {folder} does not fit the model in {adapter.base}: {'; '.join(faults[:3])}{more}. Set "
            f"base_model_name_or_path in {folder / CONFIG_FILE} to the folder of the model that it was trained on"
        )
    return import_huggingface(adapter.base, weights=weights), adapter.base


@dataclass(frozen=True)
class _Adapter:
    folder: Path
    base: Path
    scale: float
    tensors: dict[str, Tensor]


def _read(folder: Path) -> _Adapter:
    settings: dict[str, Any] = read_json(folder / CONFIG_FILE)
    foreign = [
        f"{name}={settings.get(name)!r}" for name, allowed in _MUST_BE.items() if settings.get(name) not in allowed
    ]
    if foreign:
        raise ValueError(
            f"{folder / CONFIG_FILE} has {', '.join(foreign)}, which is not LoRA as pretune supports it; merge it with "
            "PEFT (merge_and_unload) and give the folder of the merged model"
        )
    if not (folder / _WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} has {CONFIG_FILE}, but no {_WEIGHTS_FILE}; save the adapter again")
    base = Path(str(settings.get("base_model_name_or_path")))
    if not (base / "config.json").is_file() or not holds_weights(base):
        raise ValueError(
            f"the adapter in {folder} belongs to the model {base}, but no folder with config.json and weights is "
            f"there; put it back, or set base_model_name_or_path in {folder / CONFIG_FILE} to its path"
        )
    with safe_open(folder / _WEIGHTS_FILE, framework="pt") as file:
        wanted = (file.metadata() or {}).get(_HASH)
    if wanted is not None and wanted != base_hash(base):
        raise ValueError(
            f"the adapter in {folder} was trained on other weights than those in {base}: their SHA-256 began with "
            f"{wanted[:12]}, and is {base_hash(base)[:12]} now; put that model back, or set base_model_name_or_path in "
            f"{folder / CONFIG_FILE} to its folder"
        )
    rank = settings["r"]
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return _Adapter(folder, base, scale, read_tensors(folder / _WEIGHTS_FILE))


def _merge(adapter: _Adapter, weights: dict[str, Tensor]) -> Iterator[str]:
    """Add the adapter to the weights of its base; yields a message for everything that does not fit."""
    ends = (".lora_A.weight", ".lora_B.weight")
    names = {name.removesuffix(end) for name in adapter.tensors for end in ends if name.endswith(end)}
    yield from (f"{name} is no matrix of LoRA" for name in adapter.tensors if not name.endswith(ends))
    for name in sorted(names):
        down, up = (adapter.tensors.get(name + end) for end in ends)
        module = name.removeprefix(_PREFIX)
        weight = weights.get(f"{module}.weight")
        if weight is None:
            yield f"it adapts {module}, which the model lacks"
        elif down is None or up is None:
            yield f"{module} has only one of its two matrices"
        elif (up.shape[0], down.shape[1]) != tuple(weight.shape):
            yield f"{module} is {up.shape[0]} x {down.shape[1]} there and {weight.shape[0]} x {weight.shape[1]} here"
        else:
            weights[f"{module}.weight"] = torch.addmm(weight, up.float(), down.float(), alpha=adapter.scale)


def _shortened(modules: list[str], config: ModelConfig) -> list[str]:
    """Name endings that select exactly these modules in PEFT, which compares endings; full names if no ending does."""
    everything = {name.removesuffix(".weight") for names in name_table(config).values() for name in names}
    found: set[str] = set()
    for name in modules:
        end = next((part for part in _ends(config) if name.endswith(f".{part}")), name)
        means = {one for one in everything if one.endswith(f".{end}")}
        found.add(end if means <= set(modules) else name)
    return sorted(found)


def _ends(config: ModelConfig) -> list[str]:
    """Name endings, longest first, because `attention.output.dense` also ends with `output.dense`."""
    return sorted({name for names in part_names(config).values() for name in names}, key=len, reverse=True)
