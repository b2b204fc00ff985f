"""The request for a fine-tuning, from options or a file, and its model and rows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.preparation.labelled_rows import LabelledTexts
from data_pipeline.reading.table_rows import ON_THE_COMMAND_LINE, SettingNames
from data_pipeline.schema.user_errors import InputFault
from sweeps.finetuning.classifier_training import read_rows
from sweeps.finetuning.finetune_config import IN_A_FILE
from sweeps.finetuning.finetune_file import FINETUNING, dump_finetuning
from sweeps.finetuning.finetune_settings import FinetuneSettings
from sweeps.settings.settings_file import load_settings
from sweeps.trained_models.finished_sweeps import folder_of_model
from sweeps.trained_models.model_locator import is_of_mlflow, model_at
from sweeps.trained_models.trained_model import TrainedModel, load_trained


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """A fine-tuning as requested; model and rows are not checked yet."""

    settings: FinetuneSettings
    weights_of: str
    """The model, as given by the user."""
    table: str
    """File, folder or glob of the labelled rows."""
    names: SettingNames = ON_THE_COMMAND_LINE
    """Names of the settings for messages: those of options or of the file."""
    name: str | None = None
    """Name of the fine-tuning in its file. None: without a file."""
    file: str | None = None
    """Path of the fine-tuning file. None: the request comes from options."""
    size: str | None = None
    """Size of the file. None: without a file."""
    resolved: str | None = None
    """The file with every default written out."""


def request_of_file(file: str, overrides: list[str]) -> FinetuneRequest:
    """The request of a file, after `key=value` overrides.

    Raises:
        SettingsFileError: The file cannot be read or breaks rules; the message lists every fault.
    """
    config = load_settings(Path(file), FINETUNING, overrides)
    return FinetuneRequest(
        settings=config.settings(),
        weights_of=config.start.weights_of,
        table=config.corpus.path,
        names=IN_A_FILE,
        name=config.name,
        file=file,
        size=config.size,
        resolved=dump_finetuning(config),
    )


@contextmanager
def model_and_rows(request: FinetuneRequest, results_folder: Path) -> Iterator[tuple[TrainedModel, LabelledTexts]]:
    """The model and the labelled rows, available during the block.

    Raises:
        InputFault: The model or the rows are invalid; the message lists the faults of both.
    """
    trained: TrainedModel | None = None
    found: LabelledTexts | None = None
    faults = []
    with ExitStack() as stack:
        try:
            trained = load_trained(_folder(request, results_folder, stack))
        except InputFault as fault:
            faults.append(str(fault))
        try:
            found = read_rows(request.settings, request.table, names=request.names)
        except InputFault as fault:
            faults.append(str(fault))
        if trained is None or found is None:
            separator = "\n  " if len(faults) > 1 else " "
            asked_by = [] if request.file is None else [f"{request.file}:"]
            raise InputFault(separator.join([*asked_by, *faults]))
        yield trained, found


def _folder(request: FinetuneRequest, results_folder: Path, stack: ExitStack) -> Path:
    if request.size is None or is_of_mlflow(request.weights_of):
        return stack.enter_context(model_at(request.weights_of, results_folder)).folder
    return folder_of_model(request.weights_of, request.size, results_folder, is_needed=True)[0]
