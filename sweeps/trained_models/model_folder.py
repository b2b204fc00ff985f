"""A model folder as the start of a training: shape, tokenizer and weights, with checks that they fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.layers.feed_forward import feed_forward_kind, inner_width
from core.model_files.adapter_folder import is_adapter
from core.model_files.checkpoint import newest_checkpoint
from core.model_files.given_folder import holds_given
from core.model_files.huggingface import holds_weights
from core.model_files.huggingface_config import read_config, read_shape
from core.settings.model_config import ModelConfig
from core.settings.run_config import RunConfig
from data_pipeline.schema.user_errors import InputFault, first_line
from data_pipeline.tokens.token_blocks import open_prepared
from data_pipeline.tokens.tokenizer import load_tokenizer, vocabulary_of
from sweeps.records.results_folder import SUMMARY_FILE, ResultsError, read_summary
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_file import load_sweep_file

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk; its weights are not read."""

    weights: Path
    """Value for `training.initial_weights`."""
    model: ModelConfig
    tokenizer: Path
    """Its tokenizer.json."""
    run: RunConfig | None = None
    """The run of a trial; None for a folder of transformers."""


def model_folder(path: Path) -> ModelFolder:
    """The model in a folder of transformers, such as a sweep's best/, or in the folder of a trial.

    Raises:
        ResultsError: The folder holds no model, or its tokenizer does not fit its weights.
    """
    if (path / "trial.json").is_file():
        found = trial_folder(path)
        if found.run is not None and found.run.training.lora is not None:
            raise ResultsError(
                f"{path} holds adapters, not a whole model; give best/ of its sweep, or write the whole model with "
                "pretune export"
            )
        return found
    if is_adapter(path):
        raise ResultsError(f"{path} holds an adapter, not a whole model; write the whole model with pretune export")
    if not (path / "config.json").is_file() and holds_given(path):
        raise ResultsError(
            f"{path} holds a model of a user's class, whose shape pretune does not know; give a model of our forms or "
            "of Hugging Face transformers"
        )
    if not (path / "config.json").is_file():
        raise ResultsError(
            f"{path} holds no model (config.json); give a model's folder: a sweep's best/, one of its trials, or one "
            "of Hugging Face transformers"
        )
    try:
        model, vocabulary_size = read_shape(path)
        theirs = read_config(path)
    except KeyError as cause:
        raise ResultsError(
            f"{path / 'config.json'} lacks {cause}; give a model folder of Hugging Face transformers"
        ) from cause
    except ValueError as cause:
        raise ResultsError(f"the model in {path} cannot be used: {cause}") from cause
    faults = [] if holds_weights(path) else ["it has no model.safetensors; save it with safe_serialization=True"]
    tokenizer = path / TOKENIZER_FILE
    faults += tokenizer_faults(tokenizer, vocabulary_size, theirs)
    if faults:
        raise ResultsError(f"the model in {path} cannot be used: " + "; ".join(faults))
    return ModelFolder(path.absolute(), model, tokenizer.absolute())


def tokenizer_faults(path: Path, vocabulary_size: int, theirs: dict[str, Any]) -> list[str]:
    """Faults in the fit of a tokenizer to weights, as sentences.

    Args:
        vocabulary_size: Vocabulary rows of the weights. Rows beyond the ids of the tokenizer are padding.
        theirs: config.json, for the ids of special tokens.
    """
    try:
        vocabulary = vocabulary_of(load_tokenizer(path))
    except ValueError as cause:
        return [f"{cause}; give a folder with the tokenizer.json that the model was trained with"]
    faults = []
    if vocabulary.size > vocabulary_size:
        faults.append(
            f"its tokenizer has ids up to {vocabulary.size - 1:,} and its weights {vocabulary_size:,} rows; add the "
            "tokenizer.json that the model was trained with"
        )
    said = theirs.get("eos_token_id")
    ends = said if isinstance(said, list) else [said]
    if said is not None and vocabulary.eos_id not in ends:
        faults.append(
            f"its config.json ends a text with id {said} and its tokenizer with {vocabulary.eos_id}; use the files of "
            "one model"
        )
    return faults


def trial_folder(path: Path) -> ModelFolder:
    """The model of a trial, from its newest checkpoint.

    Raises:
        ResultsError: The trial has no checkpoint, or its prepared corpus with the tokenizer was deleted.
    """
    try:
        record = TrialRecord.model_validate_json((path / "trial.json").read_bytes())
    except (OSError, ValueError) as cause:
        raise ResultsError(f"{path / 'trial.json'} cannot be read: {first_line(cause)}; name another trial") from cause
    sweep_folder = path.absolute().parents[1]
    checkpoint = newest_checkpoint(path)
    prepared = prepared_of(sweep_folder)
    if checkpoint is None or prepared is None:
        missing = "checkpoint; only the best trial keeps its own" if checkpoint is None else "prepared corpus any more"
        raise ResultsError(f"{record.name} has no {missing}")
    run = load_sweep_file(sweep_folder / "sweep.yaml").run_config(record.settings)
    model = run.model.in_standard_form()  # Of a model that is trained already.
    return ModelFolder(checkpoint.absolute(), model, open_prepared(prepared).tokenizer_path.absolute(), run)


def prepared_of(sweep_folder: Path) -> Path | None:
    """The prepared corpus of a sweep; None if it is unknown or deleted."""
    if not (sweep_folder / SUMMARY_FILE).is_file():
        return None
    folder = read_summary(sweep_folder, needs=("data",))["data"].get("folder")
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


_OF_THE_ROWS = ("sequence_length", "max_sequence_length", "dropout")
"""Model settings that the weights do not fix."""


def merged_shape(said: ModelConfig, folder: ModelFolder) -> tuple[ModelConfig, list[str]]:
    """The folder's shape with the row settings of a file, and each setting that contradicts the folder.

    Args:
        said: The model of the file; the folder sets what the file leaves out.
    """
    there = folder.model
    resolved = there.model_copy(
        update={
            "feed_forward": feed_forward_kind(there),
            "feed_forward_width": inner_width(there),
            "kv_heads": there.kv_heads or (there.heads if there.is_causal else None),
        }
    )
    faults = []
    for name in sorted(said.model_fields_set - {*_OF_THE_ROWS, *(("form",) if there.is_causal else ())}):
        wanted, has = getattr(said, name), getattr(resolved, name)
        if wanted not in (None, "auto", has):
            faults.append(f"model.{name}={wanted} is not the {has} of {folder.weights}; leave model.{name} out")
    rows: dict[str, Any] = {name: getattr(said, name) for name in _OF_THE_ROWS if name in said.model_fields_set}
    length = rows.get("sequence_length") or there.sequence_length
    has_learned_positions = not there.is_causal and there.form == "roberta"
    if has_learned_positions and max(length, said.max_sequence_length or 0) > there.num_positions:
        faults.append(
            f"model.sequence_length={length} is above the {there.num_positions} learned positions of {folder.weights}; "
            f"use {there.num_positions} or fewer"
        )
        length = there.num_positions
    positions = max(length, there.num_positions, rows.get("max_sequence_length") or 0)
    rows |= {"sequence_length": length, "max_sequence_length": positions if positions > length else None}
    return ModelConfig.model_validate(there.model_dump() | rows), faults


def check_tokenizer(path: Path, folder: ModelFolder) -> None:
    """Check that a tokenizer gives every text the same ids as the folder's own.

    Raises:
        InputFault: The ids differ.
    """
    try:
        named = load_tokenizer(path)
    except ValueError as cause:
        raise InputFault(str(cause)) from cause
    own = load_tokenizer(folder.tokenizer)
    if named.to_str() != own.to_str() and named.get_vocab(True) != own.get_vocab(True):
        raise InputFault(
            f"tokenizer.path={path}: its {vocabulary_of(named).size:,} ids differ from the {vocabulary_of(own).size:,} "
            f"of the tokenizer of {folder.weights}, so the weights would not match its tokens; leave tokenizer out to "
            "use the model's own"
        )
