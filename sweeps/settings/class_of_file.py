"""The class of the user that a sweep file names: its source is found, and not run."""

from collections.abc import Sequence
from pathlib import Path

from core.settings.model_config import ModelConfig
from core.user_code.class_source import SOURCE_FILE, ClassCode, CodeNotFoundError, code_of_json, find_code
from core.user_code.permitted_code import CodeNotPermittedError, not_permitted, permit
from data_pipeline.files.plain_json import parse_object
from data_pipeline.schema.user_errors import InputFault
from sweeps.settings.sweep_config import SweepConfig

_FOUND: dict[tuple[str, str], ClassCode] = {}
"""Source by class path and digest, of all files that this process has read."""


def with_class_source(sweep: SweepConfig, folders: Sequence[Path]) -> SweepConfig:
    """The sweep with the digest of its class, whose source is now known to `source_of`. Runs nothing of it.

    A resolved file has the digest already. Its source is then the copy beside it, or the class in the folders if that
    is unchanged; without either, the file can be read, and its model cannot be built.

    Args:
        folders: The folder of the sweep file, then the current one.

    Raises:
        CodeNotFoundError: No such class.
    """
    model = sweep.model
    if model.class_ is None:
        return sweep
    if model.class_digest is not None:
        for code in _copies_and_originals(model.class_, folders):
            if code.digest == model.class_digest:
                _FOUND[model.class_, code.digest] = code
        return sweep
    code = find_code(model.class_, folders)
    _FOUND[model.class_, code.digest] = code
    return sweep.model_copy(update={"model": model.model_copy(update={"class_digest": code.digest})})


def source_of(class_path: str, digest: str | None) -> ClassCode | None:
    """The source of a class that a file of this process names; None if it is gone or has changed."""
    return None if digest is None else _FOUND.get((class_path, digest))


def remember_source(code: ClassCode) -> None:
    """Let `source_of` know a source, such as that of an exported model."""
    _FOUND[code.class_path, code.digest] = code


def read_source(folder: Path) -> ClassCode | None:
    """The copy of a source in a results folder, or in an exported model; None without a whole one."""
    try:
        return code_of_json(parse_object((folder / SOURCE_FILE).read_bytes()))
    except (OSError, ValueError):
        return None


def permit_class(model: ModelConfig, *, is_trusted: bool) -> None:
    """Let this process build the class of a model, if it has one. Its module is imported now.

    Args:
        is_trusted: The user's own file says trust_code: true, or the command has --allow-code.

    Raises:
        CodeNotPermittedError: Nobody has permitted the code.
        UserCodeError: The module raises an error while it is imported.
        InputFault: The source of a resolved file or an exported model is gone.
    """
    if model.class_ is None:
        return
    if not is_trusted:
        raise CodeNotPermittedError(not_permitted(model.class_))
    code = source_of(model.class_, model.class_digest)
    if code is None:
        raise InputFault(
            f"model.class={model.class_}: its source of then (SHA-256 {str(model.class_digest)[:12]}) is not here, and "
            "the class has changed since; restore the file, or begin anew with your own sweep file"
        )
    permit(code)


def _copies_and_originals(class_path: str, folders: Sequence[Path]) -> list[ClassCode]:
    found = [read_source(folder) for folder in folders]
    try:
        found.append(find_code(class_path, folders))
    except CodeNotFoundError:
        found.append(None)
    return [code for code in found if code is not None and code.class_path == class_path]
