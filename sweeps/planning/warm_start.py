"""What a sweep or training takes over from an earlier one: found by name among the results, or by folder."""

from pathlib import Path

from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.tokenizer import load_tokenizer, vocabulary_of
from sweeps.records.results_folder import ResultsError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_sections import StartConfig
from sweeps.trained_models.finished_sweeps import folder_of_model
from sweeps.trained_models.model_folder import ModelFolder, check_tokenizer, merged_shape, model_folder


def refuse_settings_of(sweep: SweepConfig) -> None:
    """See that a sweep does not ask for the settings of another, which `pretune train` takes over.

    Raises:
        ResultsError: It does.
    """
    if sweep.start is not None and sweep.start.settings_of is not None:
        raise ResultsError(
            "start.settings_of is for a training, and this is a sweep: use pretune train, or leave settings_of out"
        )


def beginning_with_weights(sweep: SweepConfig, results_folder: Path) -> SweepConfig:
    """A sweep or training that begins with the model of `start.weights_of`: its weights, and its shape and tokenizer,
    which the file need not repeat. Unchanged where the file names none.

    Raises:
        ResultsError: There is no such model, or its tokenizer and weights do not belong together.
        InputFault: The file contradicts the model; lists everything in which it does.
    """
    if sweep.start is None or sweep.start.weights_of is None:
        return sweep
    name = sweep.start.weights_of
    path, earlier = folder_of_model(name, sweep.size, results_folder)
    folder = model_folder(path)
    shape, faults = merged_shape(sweep.model, folder)
    faults += [
        f"search.{path}: the weights have one shape; leave it out"
        for path in sweep.search
        if path.startswith("model.") and path != "model.dropout"
    ]
    faults += sweep.lora_faults(shape)
    faults += _tokenizer_faults(sweep, folder, earlier)
    if faults:
        raise InputFault(f"start.weights_of={name}: " + "\n".join(faults))
    values = sweep.model_dump() | {
        "tokenizer": {"kind": "file", "path": str(folder.tokenizer)},
        "model": shape.model_dump(),
        "packing": sweep.packing.model_dump() | {"sequence_length": shape.sequence_length},
        "training": sweep.training.model_dump() | {"initial_weights": str(folder.weights)},
        "start": (sweep.start.model_dump(exclude_none=True, exclude={"weights_of"})) or None,
    }
    if not values["start"] or not any(values["start"].values()):
        values["start"] = None
    return with_notes(SweepConfig.model_validate(values), f"weights, shape and tokenizer of {folder.weights}")


def _tokenizer_faults(sweep: SweepConfig, folder: ModelFolder, earlier: SweepConfig | None) -> list[str]:
    """What the file says of a tokenizer, where it is not the model's own."""
    if "tokenizer" not in sweep.model_fields_set or (earlier is not None and sweep.tokenizer == earlier.tokenizer):
        return []
    if sweep.tokenizer.path is None:
        return [
            f"tokenizer: kind {sweep.tokenizer.kind} would be trained anew, and its ids would mean nothing to the "
            f"weights of {folder.weights}; leave tokenizer out, and the model's own is used"
        ]
    try:
        check_tokenizer(Path(sweep.tokenizer.path).expanduser(), folder)
    except InputFault as fault:
        return [str(fault)]
    return []


def notes_of(sweep: SweepConfig) -> list[str]:
    """Where a sweep's settings and weights come from, in words."""
    return [] if sweep.start is None else list(sweep.start.notes)


def expected_vocabulary(sweep: SweepConfig) -> int:
    """Entries of the vocabulary: the tokenizer's where it is there already, else the most that it may learn.

    Raises:
        InputFault: The tokenizer cannot be read.
    """
    if sweep.tokenizer.path is None:
        return sweep.tokenizer.vocabulary
    try:
        return vocabulary_of(load_tokenizer(Path(sweep.tokenizer.path).expanduser())).size
    except ValueError as cause:
        raise InputFault(f"tokenizer.path: {cause}") from cause


def with_notes(sweep: SweepConfig, *notes: str) -> SweepConfig:
    """A sweep with more said of where its settings and weights come from; unchanged if there is no more."""
    if not notes:
        return sweep
    start = {} if sweep.start is None else sweep.start.model_dump(exclude_none=True)
    return sweep.model_copy(update={"start": StartConfig(**(start | {"notes": (*notes_of(sweep), *notes)}))})


def without_start(sweep: SweepConfig, *fields: str) -> SweepConfig:
    """A sweep of which these fields of `start` have been carried out, or are not to be."""
    left = {} if sweep.start is None else sweep.start.model_dump(exclude_defaults=True, exclude=set(fields))
    return sweep.model_copy(update={"start": StartConfig(**left) if left else None})
