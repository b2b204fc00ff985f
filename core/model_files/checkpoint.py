"""A run on disk: everything needed to go on as if nothing had happened, whole or not there at all.

A checkpoint is a folder `step-<n>`: model.safetensors, optimizer.safetensors, progress.json. It is written beside its
place, forced to disk and renamed, so a process killed at any moment leaves the one before. `best-<n>` holds the weights
of the best evaluation alone. `trunk-<n>` is a checkpoint like `step-<n>`, taken where a run is about to cool down: from
there a training of more tokens goes on at full learning rate, which from the cooled model it could not.
Nothing here is a pickle.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.distributed.workers import Workers
from core.models.language_model import LanguageModel

MODEL_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_PROGRESS_FILE = "progress.json"
_METRICS_FILE = "metrics.json"
_UNFINISHED = ".writing-"
_STATE_NAMES = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    folder: Path, model: LanguageModel, optimizer: torch.optim.AdamW, progress: dict[str, Any], *, step: int
) -> Path:
    """Write the run's state after `step` steps and drop older checkpoints. One process only writes to a folder.

    Args:
        progress: All that is not a tensor; JSON values.
    """
    return _write_checkpoint(folder, f"step-{step:012d}", model, optimizer, progress)


def save_trunk(
    folder: Path, model: LanguageModel, optimizer: torch.optim.AdamW, progress: dict[str, Any], *, step: int
) -> Path:
    """As `save_checkpoint`, beside its checkpoints: the state before the cooldown, which later ones do not replace."""
    return _write_checkpoint(folder, f"trunk-{step:012d}", model, optimizer, progress)


def save_best(folder: Path, model: LanguageModel, metrics: dict[str, float], *, step: int) -> Path:
    """Write the weights of the best evaluation so far in place of those before."""
    return _write(folder, f"best-{step:012d}", {MODEL_FILE: model_tensors(model)}, {_METRICS_FILE: metrics})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None without one."""
    return next((path for path in _newest_first(folder, "step-") if _is_whole(path)), None)


def trunk_checkpoint(folder: Path) -> Path | None:
    """The checkpoint before the cooldown; None if the run has not come so far, or has none."""
    return next((path for path in _newest_first(folder, "trunk-") if _is_whole(path)), None)


def best_checkpoint(folder: Path) -> Path | None:
    """The folder with the best weights; None before the first evaluation."""
    return next((path for path in _newest_first(folder, "best-") if _is_readable(path / MODEL_FILE)), None)


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as progress."""
    progress: dict[str, Any] = json.loads((checkpoint / _PROGRESS_FILE).read_text())
    return progress


def restore(checkpoint: Path, model: LanguageModel, optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """Put a checkpoint's tensors into model and optimizer; gives its progress.

    Raises:
        ValueError: The checkpoint is of another model.
    """
    restore_weights(checkpoint / MODEL_FILE, model)
    _copy_into(_optimizer_tensors(model, optimizer), load_file(checkpoint / _OPTIMIZER_FILE), checkpoint)
    return read_progress(checkpoint)


def copy_from_first(model: LanguageModel, optimizer: torch.optim.AdamW, workers: Workers) -> None:
    """Give rank 0's model and optimizer to all workers, so that only rank 0 needs to see the folder."""
    for tensor in (*model_tensors(model).values(), *_optimizer_tensors(model, optimizer).values()):
        workers.copy_first(tensor)


def restore_weights(file: Path, model: LanguageModel) -> None:
    """Put the weights of a model.safetensors into a model.

    Raises:
        ValueError: They are of another model.
    """
    copy_weights(load_file(file), model, file)


def copy_weights(weights: dict[str, Tensor], model: LanguageModel, where: Path) -> None:
    """Put weights by name into a model.

    Args:
        where: They come from, for the message.

    Raises:
        ValueError: They are of another model.
    """
    _copy_into(model_tensors(model), weights, where)


def model_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Every tensor of a model that training may change, by name, shared ones once."""
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: tensor.detach() for name, tensor in (*trained, *model.named_buffers())}


def _optimizer_tensors(model: LanguageModel, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{state_name}/{name}": optimizer.state[parameter][state_name]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for state_name in _STATE_NAMES
    }


@torch.no_grad()
def _copy_into(targets: dict[str, Tensor], sources: dict[str, Tensor], where: Path) -> None:
    faults = [f"has no {name}" for name in targets if name not in sources]
    faults += [f"has {name}, which the model has not" for name in sources if name not in targets]
    faults += [
        f"{name} is {tuple(sources[name].shape)} there and {tuple(target.shape)} here"
        for name, target in targets.items()
        if name in sources and sources[name].shape != target.shape
    ]
    if faults:
        raise ValueError(f"{where} is of another model: {'; '.join(faults[:5])}")
    for name, target in targets.items():
        target.copy_(sources[name])


def _write_checkpoint(
    folder: Path, name: str, model: LanguageModel, optimizer: torch.optim.AdamW, progress: dict[str, Any]
) -> Path:
    files = {MODEL_FILE: model_tensors(model), _OPTIMIZER_FILE: _optimizer_tensors(model, optimizer)}
    return _write(folder, name, files, {_PROGRESS_FILE: progress})


def _write(
    folder: Path, name: str, tensor_files: dict[str, dict[str, Tensor]], json_files: dict[str, dict[str, Any]]
) -> Path:
    unfinished, finished = folder / f"{_UNFINISHED}{name}", folder / name
    if finished.exists():
        return finished  # The same step of the same run is the same state.
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    unfinished.mkdir()
    for file_name, tensors in tensor_files.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished / file_name)
    for file_name, values in json_files.items():
        (unfinished / file_name).write_text(json.dumps(values, indent=1))
    for path in (*unfinished.iterdir(), unfinished):
        _force_to_disk(path)
    unfinished.rename(finished)
    _force_to_disk(folder)
    kind = name.split("-")[0]
    for older in _newest_first(folder, f"{kind}-"):
        if older != finished:
            shutil.rmtree(older)
    return finished


def _force_to_disk(path: Path) -> None:
    # A rename may reach the disk before the data it names: after a power cut the folder would hold empty files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest_first(folder: Path, prefix: str) -> list[Path]:
    return sorted((path for path in folder.glob(f"{prefix}*") if path.is_dir()), reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_progress(checkpoint)
    except (OSError, ValueError):
        return False
    return all(_is_readable(checkpoint / name) for name in (MODEL_FILE, _OPTIMIZER_FILE))


def _is_readable(file: Path) -> bool:
    # safetensors' header says how long the file is, so opening finds one that was cut short.
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
