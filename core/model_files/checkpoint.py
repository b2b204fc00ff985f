"""Checkpoints of a run: they hold everything needed to resume bit for bit, and appear complete or not at all.

A checkpoint is a folder `step-<n>`: model.safetensors, optimizer.safetensors, progress.json. It is written under a
temporary name, forced to disk and renamed, so a process killed at any moment leaves the previous one. `best-<n>` holds
only the weights of the best evaluation. `trunk-<n>` is a checkpoint like `step-<n>`, taken just before the cooldown:
a longer training resumes from it at full learning rate, which is impossible from the cooled model. No file is a pickle.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.distributed.workers import Workers
from core.model_files.safetensors_files import read_tensors
from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel
from data_pipeline.files.disk_room import RESERVE_BYTES, check_room, room_named
from data_pipeline.files.plain_json import parse_object

MODEL_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_PROGRESS_FILE = "progress.json"
_METRICS_FILE = "metrics.json"
_UNFINISHED = ".writing-"
_HEADER_OF_A_TENSOR_BYTES = 80
"""About the bytes of an entry in the header of a safetensors file, without the name."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save_checkpoint(
    folder: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, progress: dict[str, Any], *, step: int
) -> Path:
    """Write the state of the run after `step` steps and delete older checkpoints; returns the folder.

    Only one process may write to a folder.

    Args:
        progress: State apart from tensors, as JSON values.

    Raises:
        NoRoomError: The disk is, or would become, full; earlier checkpoints stay.
    """
    return _write_checkpoint(folder, f"step-{step:012d}", model, optimizer, progress)


def save_trunk(
    folder: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, progress: dict[str, Any], *, step: int
) -> Path:
    """Like `save_checkpoint`, for the state before the cooldown; later checkpoints do not replace it."""
    return _write_checkpoint(folder, f"trunk-{step:012d}", model, optimizer, progress)


def save_best(folder: Path, model: LanguageModel, metrics: dict[str, float], *, step: int) -> Path:
    """Write the weights of the best evaluation so far and delete the previous ones; returns the folder."""
    return _write(folder, f"best-{step:012d}", {MODEL_FILE: model_tensors(model)}, {_METRICS_FILE: metrics})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; None if there is none."""
    return next((path for path in _newest_first(folder, "step-") if _is_whole(path)), None)


def trunk_checkpoint(folder: Path) -> Path | None:
    """The checkpoint before the cooldown; None if there is none."""
    return next((path for path in _newest_first(folder, "trunk-") if _is_whole(path)), None)


def best_checkpoint(folder: Path) -> Path | None:
    """The folder with the best weights; None before the first evaluation."""
    return next((path for path in _newest_first(folder, "best-") if _is_readable(path / MODEL_FILE)), None)


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """The `progress` passed to `save_checkpoint`.

    Raises:
        OSError, ValueError: The file is missing or no JSON object.
    """
    return parse_object((checkpoint / _PROGRESS_FILE).read_bytes())


def restore(checkpoint: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copy the tensors of a checkpoint into model and optimizer; returns its progress.

    Raises:
        ValueError: The checkpoint belongs to another model.
    """
    restore_weights(checkpoint / MODEL_FILE, model)
    _copy_into(_optimizer_tensors(model, optimizer), read_tensors(checkpoint / _OPTIMIZER_FILE), checkpoint)
    return read_progress(checkpoint)


def copy_from_first(model: LanguageModel, optimizer: torch.optim.Optimizer, workers: Workers) -> None:
    """Copy rank 0's model and optimizer to all workers, so that only rank 0 needs to see the folder."""
    for tensor in (*model_tensors(model).values(), *_optimizer_tensors(model, optimizer).values()):
        workers.copy_first(tensor)


def restore_weights(file: Path, model: LanguageModel) -> None:
    """Copy the weights of a model.safetensors into a model.

    Raises:
        ValueError: They belong to another model.
    """
    copy_weights(read_tensors(file), model, file)


def copy_weights(weights: dict[str, Tensor], model: LanguageModel, where: Path) -> None:
    """Copy weights into a model by name.

    Args:
        where: Path of the weights, for the error.

    Raises:
        ValueError: They belong to another model.
    """
    _copy_into(model_tensors(model), weights, where)


def model_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """All tensors of a model that training may change, by name; shared ones once.

    Of a user's class, frozen ones too: no other file holds them.
    """
    is_given = isinstance(model, GivenModel)
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad or is_given)
    return {name: tensor.detach() for name, tensor in (*trained, *model.named_buffers())}


def _optimizer_tensors(model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{state_name}/{name}": tensor
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for state_name, tensor in optimizer.state[parameter].items()
    }


@torch.no_grad()
def _copy_into(targets: dict[str, Tensor], sources: dict[str, Tensor], where: Path) -> None:
    faults = [f"has no {name}" for name in targets if name not in sources]
    faults += [f"has {name}, which the model lacks" for name in sources if name not in targets]
    faults += [
        f"{name} is {tuple(sources[name].shape)} there and {tuple(target.shape)} here"
        for name, target in targets.items()
        if name in sources and sources[name].shape != target.shape
    ]
    if faults:
        raise ValueError(
            f"{where} is of another model: {'; '.join(faults[:5])}; give weights of this model, or change its settings"
        )
    for name, target in targets.items():
        target.copy_(sources[name])


def _write_checkpoint(
    folder: Path, name: str, model: LanguageModel, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> Path:
    files = {MODEL_FILE: model_tensors(model), _OPTIMIZER_FILE: _optimizer_tensors(model, optimizer)}
    return _write(folder, name, files, {_PROGRESS_FILE: progress})


def _write(
    folder: Path, name: str, tensor_files: dict[str, dict[str, Tensor]], json_files: dict[str, dict[str, Any]]
) -> Path:
    unfinished, finished = folder / f"{_UNFINISHED}{name}", folder / name
    if finished.exists():
        return finished  # The same step of the same run has the same state.
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    num_bytes = sum(map(_tensor_file_bytes, tensor_files.values()))
    check_room(folder, num_bytes + RESERVE_BYTES)
    with room_named(finished, num_bytes), _nothing_left_of(unfinished):
        unfinished.mkdir()
        for file_name, tensors in tensor_files.items():
            _save_tensors(tensors, unfinished / file_name)
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


@contextmanager
def _nothing_left_of(folder: Path) -> Iterator[None]:
    """Remove a folder if the disk refuses a part of it: the rest is of no use, and others need its room."""
    try:
        yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _tensor_file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a safetensors file with these tensors: their values, and a header of names, types and shapes."""
    values = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return values + sum(_HEADER_OF_A_TENSOR_BYTES + len(name) for name in tensors)


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    except SafetensorError as error:
        # The library hides the number of the system's error in its text.
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error


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
    # The header of a safetensors file contains its length, so opening detects a truncated file.
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
