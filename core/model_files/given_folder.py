"""A model of a user's class on disk: JSON with its class and arguments, safetensors, tokenizer, and its source.

Files: own_model.json, own_weights.safetensors, class_source.json, tokenizer.json, tokenizer_config.json. A module with
`save_pretrained` writes its own files beside them. Reading the folder runs none of its code.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from core.model_files.checkpoint import copy_weights, model_tensors
from core.model_files.huggingface import export_tokenizer
from core.model_files.safetensors_files import read_tensors
from core.models.given_class import GivenModel, build_given
from core.settings.model_config import ModelConfig
from core.user_code.class_source import SOURCE_FILE
from data_pipeline.files.plain_json import parse_object
from data_pipeline.schema.user_errors import first_line
from data_pipeline.tokens.tokenizer import Vocabulary

GIVEN_FILE = "own_model.json"
_WEIGHTS_FILE = "own_weights.safetensors"
_FORMAT_VERSION = 1
_OURS = "module."
"""Prefix of the names of tensors in the adapter; files have the names of the user's module."""


@dataclass(frozen=True)
class GivenFolder:
    """A model of a user's class on disk; neither its weights nor its code are read."""

    config: ModelConfig
    vocabulary_size: int
    pad_id: int


def holds_given(folder: Path) -> bool:
    """Whether a folder holds a model of a user's class."""
    return (folder / GIVEN_FILE).is_file()


def export_given(
    model: GivenModel,
    config: ModelConfig,
    tokenizer_path: Path,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    chat_template: str | None = None,
) -> None:
    """Write the folder, which `import_given` reads.

    Args:
        chat_template: Jinja source of the template of the conversations that it was trained on.

    Raises:
        UserCodeError: The module's own `save_pretrained` raises an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save = getattr(model.module, "save_pretrained", None)
    if callable(save):
        # First, so that files of ours win over its files of the same names.
        with model.errors_placed(f"{model.code.class_name}.save_pretrained"):
            save(str(folder))
    tensors = {name.removeprefix(_OURS): tensor.contiguous() for name, tensor in model_tensors(model).items()}
    save_file(tensors, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
    described = {
        "format_version": _FORMAT_VERSION,
        "model": config.model_dump(mode="json"),
        "vocabulary_size": model.vocabulary_size,
        "pad_id": vocabulary.pad_id,
    }
    for name, values in ((GIVEN_FILE, described), (SOURCE_FILE, model.code.as_json())):
        (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    export_tokenizer(config, tokenizer_path, vocabulary, folder, chat_template)


def read_given(folder: Path) -> GivenFolder:
    """The settings of a model of a user's class.

    Raises:
        ValueError: The folder is damaged; the message names the file.
    """
    path = folder / GIVEN_FILE
    try:
        values = parse_object(path.read_bytes())
        config = ModelConfig.model_validate(values.get("model"))
    except (OSError, ValidationError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    size, pad_id = values.get("vocabulary_size"), values.get("pad_id")
    is_ours = values.get("format_version") == _FORMAT_VERSION and config.class_ is not None
    if not is_ours or not isinstance(size, int) or not isinstance(pad_id, int):
        raise ValueError(f"{path} holds something else than a model of a class; give another folder")
    return GivenFolder(config, size, pad_id)


def import_given(folder: Path, found: GivenFolder) -> GivenModel:
    """The model in fp32 and evaluation mode. Its code must be permitted.

    Raises:
        CodeNotPermittedError: It is not.
        UserCodeError: The class cannot be built.
        ValueError: The weights are of another model.
    """
    model = build_given(found.config, found.vocabulary_size, pad_id=found.pad_id)
    copy_weights(given_weights(folder), model, folder)
    model.eval()
    return model


def given_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder, under the names of `model_tensors`.

    Raises:
        OSError, ValueError: There are none.
    """
    return {f"{_OURS}{name}": tensor for name, tensor in read_tensors(folder / _WEIGHTS_FILE).items()}
