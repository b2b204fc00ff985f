"""Warm start: weights, shape and tokenizer of an earlier sweep or training, found by name or by folder."""

from pathlib import Path

from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.tokenizer import load_tokenizer, vocabulary_of
from sweeps.records.results_folder import ResultsError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_sections import StartConfig
from sweeps.trained_models.finished_sweeps import folder_of_model
from sweeps.trained_models.model_folder import ModelFolder, check_tokenizer, merged_shape, model_folder


def refuse_settings_of(sweep: SweepConfig) -> None:
    """Check that a sweep does not set `start.settings_of`, which only `pretune train` uses.

    Raises:
        ResultsError: The file sets it.
    """
    if sweep.start is not None and sweep.start.settings_of is not None:
        raise ResultsError(
            f"start.settings_of={sweep.start.settings_of}: applies to a training, and this is a sweep; use pretune "
            "train, or remove settings_of"
        )


def beginning_with_weights(sweep: SweepConfig, results_folder: Path) -> SweepConfig:
    """A sweep or training that starts from the model of `start.weights_of`: its weights, shape and tokenizer.

    The file need not repeat shape and tokenizer. A file without `start.weights_of` is returned unchanged.

    Raises:
        ResultsError: The model does not exist, or its tokenizer and weights do not match.
        InputFault: The file contradicts the model; the message lists every contradiction.
    """
    if sweep.start is None or sweep.start.weights_of is None:
        return sweep
    name = sweep.start.weights_of
    path, earlier = folder_of_model(name, sweep.size, results_folder)
    folder = model_folder(path)
    shape, faults = merged_shape(sweep.model, folder)
    faults += [
        f"search.{path}: the weights have a fixed shape; remove it from search"
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
    """Faults of a tokenizer in the file that differs from the model's own."""
    if "tokenizer" not in sweep.model_fields_set or (earlier is not None and sweep.tokenizer == earlier.tokenizer):
        return []
    if sweep.tokenizer.path is None:
        return [
            f"tokenizer: kind {sweep.tokenizer.kind} would be trained anew, and its ids would not match the "
            f"weights of {folder.weights}; remove tokenizer to use the model's own"
        ]
    try:
        check_tokenizer(Path(sweep.tokenizer.path).expanduser(), folder)
    except InputFault as fault:
        return [str(fault)]
    return []


def notes_of(sweep: SweepConfig) -> list[str]:
    """Origin of a sweep's settings and weights, as text."""
    return [] if sweep.start is None else list(sweep.start.notes)


def expected_vocabulary(sweep: SweepConfig) -> int:
    """Size of the vocabulary: that of an existing tokenizer, else the maximum of the one to train.

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
    """A sweep with notes on the origin of its settings and weights added; unchanged without notes."""
    if not notes:
        return sweep
    start = {} if sweep.start is None else sweep.start.model_dump(exclude_none=True)
    return sweep.model_copy(update={"start": StartConfig(**(start | {"notes": (*notes_of(sweep), *notes)}))})


def without_start(sweep: SweepConfig, *fields: str) -> SweepConfig:
    """A sweep without these fields of `start`."""
    left = {} if sweep.start is None else sweep.start.model_dump(exclude_defaults=True, exclude=set(fields))
    return sweep.model_copy(update={"start": StartConfig(**left) if left else None})
