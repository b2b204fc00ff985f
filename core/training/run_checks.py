"""Checks before the first step: settings fit the data, and a checkpoint belongs to the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.model_files.adapter_folder import is_adapter
from core.model_files.checkpoint import MODEL_FILE, read_progress
from core.model_files.huggingface import holds_weights
from core.model_files.initial_weights import hash_of_base
from core.models.lora import lora_faults
from core.settings.run_config import RunConfig
from core.settings.schedule import run_length, with_warmup_share
from core.settings.training_config import WITHOUT_BASE
from data_pipeline.tokens.token_blocks import PreparedCorpus


@dataclass(frozen=True)
class Beginning:
    """A checkpoint that a run begins with instead of fresh weights."""

    checkpoint: Path
    is_same_run: bool
    """True: the trunk of this run; tokens, position and statistics continue. False: the previous stage; only weights
    and optimizer state are used."""


def check_fit(run: RunConfig, data: PreparedCorpus) -> None:
    """Check the settings of a run against its data.

    Raises:
        ValueError: Rows longer than the model's maximum, missing initial weights, LoRA that does not fit, or an empty
            split; the message lists all faults.
    """
    faults = []
    if data.train.sequence_length > run.model.num_positions:
        faults.append(
            f"rows of the corpus have {data.train.sequence_length} tokens and the model takes "
            f"{run.model.num_positions}; raise model.sequence_length or shorten the rows"
        )
    initial = run.training.initial_weights
    if initial is not None and not holds_weights(Path(initial)) and not is_adapter(Path(initial)):
        faults.append(
            f"training.initial_weights={initial} holds no {MODEL_FILE} on this machine; give the folder of a model "
            "that every worker can read, such as the best/ of a sweep"
        )
    if run.training.lora is not None:
        faults += lora_faults(run.model, run.training.lora)
        if initial is None:
            faults.append(WITHOUT_BASE)
        elif is_adapter(Path(initial)):
            faults.append(
                f"training.initial_weights={initial} is an adapter, but training.lora needs a whole model; merge it "
                "with pretune export"
            )
    if data.train.num_rows > 0:
        faults += _warmup_faults(run, data)
    if data.train.num_rows == 0:
        faults.append("the corpus has no training row; lower corpus.holdout or add documents")
    if data.holdout.num_rows == 0:
        faults.append("the corpus has no holdout row; raise corpus.holdout")
    if faults:
        raise ValueError("; ".join(faults))


def _warmup_faults(run: RunConfig, data: PreparedCorpus) -> list[str]:
    rows, tokens = data.train.num_rows, data.train.num_tokens
    length = run_length(run.training, num_rows=rows, num_tokens=tokens)
    tokens_per_step = run.training.batch_size * tokens / rows
    try:
        with_warmup_share(run.training, total_tokens=length.schedule_tokens, tokens_per_step=tokens_per_step)
    except ValueError as error:
        return [str(error)]
    return []


_SETTINGS_WITHOUT_EFFECT = ("micro_batch_size", "on_oom", "activation_checkpointing", "compile")
"""Training settings that change speed and memory, but not the result."""


def settings_that_count(run: RunConfig) -> dict[str, Any]:
    """The settings that determine the result; a run may resume from a checkpoint of equal settings."""
    settings = run.model_dump(mode="json")
    for name in _SETTINGS_WITHOUT_EFFECT:
        del settings["training"][name]
    if settings["training"]["lora"] is not None:
        del settings["training"]["lora"]["recompute_feed_forward"]
    return settings


def check_same_run(checkpoint: Path, run: RunConfig, data: PreparedCorpus) -> None:
    """Check that a checkpoint belongs to this run.

    Raises:
        ValueError: It belongs to another run; the message names every setting that differs.
    """
    saved = read_progress(checkpoint)
    faults = _differences(saved["settings"], settings_that_count(run), path="")
    if saved["data"] != data.fingerprint:
        faults.append(f"data {saved['data']} there and {data.fingerprint} here")
    faults += _faults_of_base(saved, run)
    if faults:
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(faults)}. "
            "Give this run another folder, or remove that checkpoint."
        )


_LENGTH_OF_A_RUN = ("tokens", "epochs", "schedule", "warmup", "warmup_tokens", "warmup_steps", "cooldown", "floor")
"""Settings in which a run may differ from its trunk: its length and its end."""


def check_trunk(checkpoint: Path, run: RunConfig, data: PreparedCorpus) -> None:
    """Check that a run may resume from a trunk: only its length may differ.

    Raises:
        ValueError: The message names every setting that differs, or that the trunk has enough tokens already.
    """
    saved = read_progress(checkpoint)
    here = settings_that_count(run)
    # The initial weights of the trunk itself do not matter here.
    for name in (*_LENGTH_OF_A_RUN, "initial_weights"):
        here["training"][name] = saved["settings"]["training"].get(name)
    faults = _differences(saved["settings"], here, path="")
    if saved["data"] != data.fingerprint:
        faults.append(f"data {saved['data']} there and {data.fingerprint} here")
    faults += _faults_of_base(saved, run)
    tokens = saved["progress"]["tokens"]
    if run.training.batch_schedule is not None:
        faults.append("training.batch_schedule doubles at shares of the length, which differs there; begin anew")
    if run.training.tokens is not None and tokens >= run.training.tokens:
        faults.append(
            f"it has {tokens:,} tokens already, and training.tokens={run.training.tokens:,} asks for no more; raise it"
        )
    if faults:
        raise ValueError(f"cannot resume from {checkpoint}: {'; '.join(faults)}")


def _faults_of_base(saved: dict[str, Any], run: RunConfig) -> list[str]:
    there, here = saved.get("base"), hash_of_base(run)
    if there == here:
        return []
    return [
        f"its adapters were trained on other weights than those in {run.training.initial_weights} now (SHA-256 "
        f"{str(there)[:12]} there and {str(here)[:12]} here); restore the original weights"
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
