"""Full training of one configuration: a sweep of one trial, with the settings of a file or of a sweep's winner.

It uses the same lanes, records, MLflow runs and report as every sweep, and the same command resumes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from core.model_files.checkpoint import read_progress, trunk_checkpoint
from core.settings.run_config import RunConfig
from core.training.run_checks import check_trunk
from core.training.training_stage import Stage
from data_pipeline.schema.dotted_paths import set_at
from data_pipeline.schema.settings import parse_count
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.analysis.longer_training import MovedSettings, moved_to_length
from sweeps.planning.learning_rate_rule import TRUNK_SCHEDULES, notes_on_shape, notes_on_units, scaled_learning_rate
from sweeps.planning.resolved_sweep import PreparedSweep
from sweeps.planning.stage_preparation import tokens_of_stage
from sweeps.planning.warm_start import notes_of, with_notes, without_start
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.class_of_file import permit_class
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE, MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.settings.sweep_sections import StartConfig
from sweeps.trained_models.finished_sweeps import BEST, FinishedSweep, find_finished, finished_sweep

FILE = "file"
_OF_A_TRAINING = {
    *("purpose", "size", "corpus", "tokenizer", "packing", "model", "objective", "training", "start", "stages"),
    *("evaluation", "metric", "resources"),
}
"""Sections of a file that apply to a single trial; the others control the search."""


@dataclass(frozen=True)
class _Source:
    """The trial that supplies the settings."""

    earlier: FinishedSweep
    record: TrialRecord

    @property
    def run(self) -> RunConfig:
        return self.earlier.sweep.run_config(self.record.settings)


@dataclass(frozen=True)
class AskedLength:
    """Length of a training, of which one is given."""

    tokens: int | None = None
    """Total tokens, including those of a trunk."""
    times: float | None = None
    """The same as a multiple of the tokens of the sweep's trials."""


def asked_length(text: str) -> AskedLength:
    """The length of `100M` or `10x`.

    Raises:
        InputFault: It is neither.
    """
    multiple = re.fullmatch(r"(\d*\.?\d+)x", text.strip())
    if multiple is not None:
        return AskedLength(times=float(multiple[1]))
    try:
        return AskedLength(tokens=int(parse_count(text)))
    except ValueError as error:
        raise InputFault(f"--tokens {text}: {error}") from error


def plan_training(
    path: Path,
    overrides: Sequence[str],
    *,
    chosen: str | None,
    length: AskedLength | None = None,
    keep_settings: bool,
    results_folder: Path,
    console: Console,
    allow_code: bool = False,
) -> SweepConfig:
    """The training that `pretune train` runs: a sweep of one trial; its `start.notes` name the origin of its settings.

    Prepares the corpus if the learning rate depends on its size.

    Args:
        path: A sweep file, or a sweep's results folder.
        chosen: `best`, a trial's name, or `file`. None: the best trial, if there is one.
        length: None: as in the file.
        keep_settings: Keep the winner's learning rate and batch size.
        allow_code: The code of a user's class may run. A results folder never permits it itself.

    Raises:
        InputFault: An argument or the file is invalid; the message names the remedy.
    """
    folder = path if path.is_dir() else None
    file = path if folder is None else path / "sweep.yaml"
    if folder is not None:
        finished_sweep(folder)  # Raises if the folder holds no finished sweep.
    asked = load_sweep_file(file, overrides)
    permit_class(asked.model, is_trusted=allow_code or (folder is None and asked.trust_code))
    source = _source(asked, folder, chosen, results_folder)
    tokens, times = (None, None) if length is None else (length.tokens, length.times)
    if times is not None:
        if source is None:
            raise InputFault(f"--tokens {times:g}x: no sweep supplies the settings, so there are no tokens to multiply")
        tokens = round(times * source.earlier.sweep.budget.trial_tokens)
    if tokens is not None:
        of_tokens = [f"budget.tokens_per_trial={tokens}", "budget.epochs_per_trial=null"]
        asked = load_sweep_file(file, [*overrides, *of_tokens])
    _check_length(asked, source, tokens, is_file=folder is None)
    begun = PreparedSweep(asked, results_folder, console).in_tokens
    sweep = with_notes(_one_configuration(begun), *notes_of(begun)[len(notes_of(asked)) :])
    if source is None:
        return sweep
    given_keys = {override.partition("=")[0].strip() for override in overrides}
    sweep = with_notes(
        _taken_over(sweep, source, given_keys), f"settings of {source.record.name} in {source.earlier.folder}"
    )
    if LEARNING_RATE not in given_keys:
        sweep = with_notes(sweep, *notes_on_shape(source.run.model, sweep.run_config().model))
    moved = None if keep_settings or sweep.stages or given_keys & {LEARNING_RATE, BATCH} else _moved(sweep, source)
    if moved is not None:
        return with_notes(
            _with_notes_on_units(_with(sweep, moved.values), source),
            *moved.reasons,
            "begins anew and not from the winner's trunk, whose settings are those of its own length; --keep-settings "
            "keeps them",
        )
    if keep_settings or LEARNING_RATE in given_keys:
        sweep = with_notes(sweep, f"learning rate {sweep.training.learning_rate:.3g}, as asked")
    elif sweep.stages:
        sweep = _with_rates_of_stages(sweep, source, PreparedSweep(sweep, results_folder, console).stages)
    else:
        sweep = _with_scaled_rate(sweep, source)
    return _from_the_trunk(_with_notes_on_units(sweep, source), source, results_folder, console)


def _source(asked: SweepConfig, folder: Path | None, chosen: str | None, results_folder: Path) -> _Source | None:
    start = None if asked.start is None else asked.start.settings_of
    if chosen == FILE or (chosen is None and folder is None and start is None and not asked.search):
        return None
    if folder is not None:
        earlier = finished_sweep(folder)
    elif start is not None:
        earlier = find_finished(start, size=asked.size, results_folder=results_folder, what_for="start.settings_of")
    elif asked.search and chosen is not None:
        what_for = f"--from {chosen}"
        earlier = find_finished(
            asked.name, size=asked.size, results_folder=results_folder, what_for=what_for, any_size=True
        )
    elif asked.search:
        raise InputFault(
            f"the file sweeps {', '.join(asked.search)}; choose the values to train with: --from best (the sweep's "
            "winner), --from trial-0003, or --from file (the values outside `search`)"
        )
    else:
        raise InputFault(
            f"--from {chosen}: the file names no sweep; write start: {{settings_of: NAME}} or leave it out"
        )
    return _Source(earlier, earlier.trial(chosen or BEST))


def _check_length(asked: SweepConfig, source: _Source | None, tokens: int | None, *, is_file: bool) -> None:
    if asked.stages and tokens is not None:
        raise InputFault(f"--tokens {tokens}: the stages of the file set the length; change stages instead")
    is_the_sweep_itself = bool(asked.search) or not is_file
    if is_the_sweep_itself and source is not None and not asked.stages:
        there = source.earlier.sweep.budget.trial_tokens
        if asked.budget.tokens_per_trial == there and tokens is None:
            raise InputFault(
                f"--tokens is missing: the trials of {source.earlier.folder.name} had {there:,} tokens, and a full "
                f"training needs its own number; give it, e.g. --tokens {10 * there}"
            )


def _one_configuration(asked: SweepConfig) -> SweepConfig:
    """The file's own settings as a single trial without early stopping."""
    own = without_start(asked, "settings_of", "trunk_of", "notes").model_dump(include=_OF_A_TRAINING)
    return SweepConfig.model_validate(
        own
        | {
            "name": f"{asked.name}-train" if asked.search else asked.name,
            "early_stopping": {"method": "none"},
            "budget": {"trials": 1, "tokens_per_trial": asked.budget.tokens_per_trial},
        }
    )


def _taken_over(sweep: SweepConfig, source: _Source, overridden: set[str]) -> SweepConfig:
    """The sweep with the winner's settings, except those that the command line overrides."""
    settings = {path: value for path, value in source.record.settings.items() if path not in overridden}
    if source.record.micro_batch_size_used is not None and MICRO_BATCH in settings:
        settings[MICRO_BATCH] = source.record.micro_batch_size_used
    return _with(sweep, settings)


def _with(sweep: SweepConfig, settings: Mapping[str, Any]) -> SweepConfig:
    """The sweep with values at dotted paths."""
    raw = sweep.model_dump()
    for path, value in settings.items():
        set_at(raw, path.split("."), value)
    return SweepConfig.model_validate(raw)


def _moved(sweep: SweepConfig, source: _Source) -> MovedSettings | None:
    """The winner's learning rate and batch size at the length of the training, by the losses of its sweep."""
    there, tokens = source.earlier.sweep, sweep.budget.trial_tokens
    if tokens == there.budget.trial_tokens:
        return None
    found = moved_to_length(there, source.earlier.records, source.record.settings, tokens)
    micro = sweep.training.micro_batch_size
    if found is None or micro == "auto" or (batch := found.values.get(BATCH, micro)) >= micro:
        return found
    return replace(found, values=found.values | {MICRO_BATCH: batch})


def _with_scaled_rate(sweep: SweepConfig, source: _Source) -> SweepConfig:
    scaled = scaled_learning_rate(
        source.run.training,
        sweep.training,
        tokens_there=source.earlier.sweep.budget.trial_tokens,
        tokens_here=sweep.budget.trial_tokens,
    )
    training = sweep.training.model_copy(update={"learning_rate": scaled.value})
    return with_notes(sweep.model_copy(update={"training": training}), scaled.reason)


def _with_notes_on_units(sweep: SweepConfig, source: _Source) -> SweepConfig:
    """The sweep, with sentences on the settings that are constant in their own unit."""
    if sweep.stages:
        return sweep
    notes = notes_on_units(
        source.run.training,
        sweep.training,
        tokens_there=source.earlier.sweep.budget.trial_tokens,
        tokens_here=sweep.budget.trial_tokens,
        row_tokens=sweep.model.sequence_length,
    )
    return with_notes(sweep, *notes)


def _with_rates_of_stages(sweep: SweepConfig, source: _Source, stages: Sequence[Stage]) -> SweepConfig:
    """The sweep with a scaled learning rate in each stage that does not set its own."""
    configs, notes = [], []
    for number, (config, stage) in enumerate(zip(sweep.stages, stages, strict=True), start=1):
        if config.learning_rate is None:
            scaled = scaled_learning_rate(
                source.run.training,
                stage.run.training,
                tokens_there=source.earlier.sweep.budget.trial_tokens,
                tokens_here=tokens_of_stage(stage),
            )
            notes.append(f"stage {number}: {scaled.reason}")
            config = config.model_copy(update={"learning_rate": scaled.value})
        configs.append(config)
    return with_notes(sweep.model_copy(update={"stages": tuple(configs)}), *notes)


def _from_the_trunk(sweep: SweepConfig, source: _Source, results_folder: Path, console: Console) -> SweepConfig:
    """The training as a continuation of the winner's trunk, if the two differ only in length."""
    winner = source.earlier.folder_of(source.record)
    trunk = trunk_checkpoint(winner)
    if trunk is None or sweep.stages or sweep.training.initial_weights != source.run.training.initial_weights:
        return sweep
    why_not = _why_not_from(trunk, sweep, PreparedSweep(sweep, results_folder, console).data)
    if why_not:
        return with_notes(sweep, f"begins anew and not from the winner's trunk: {why_not}")
    # Keep the warm-up of the trunk in tokens: it is a share of another length here.
    tokens_there, tokens_here = source.earlier.sweep.budget.trial_tokens, sweep.budget.trial_tokens
    training = sweep.training
    if training.warmup_tokens is None and training.warmup_steps is None:
        training = training.model_copy(update={"warmup": source.run.training.warmup * tokens_there / tokens_here})
    start = StartConfig(trunk_of=str(winner), notes=tuple(notes_of(sweep)))
    done = read_progress(trunk)["progress"]["tokens"]
    return with_notes(
        sweep.model_copy(update={"training": training, "start": start}),
        f"continues from the winner's trunk: {done:,} tokens are trained already",
    )


def _why_not_from(trunk: Path, sweep: SweepConfig, data: PreparedCorpus) -> str:
    """The reason a training cannot resume from a trunk, as text; empty if it can.

    Raises:
        InputFault: The trunk already has all tokens of the training.
    """
    run = sweep.run_config()
    done = read_progress(trunk)["progress"]["tokens"]
    if done >= sweep.budget.trial_tokens:
        raise InputFault(
            f"--tokens {sweep.budget.trial_tokens}: the winner was already trained on {done:,} tokens before its "
            "cooldown; give a larger number"
        )
    if run.training.schedule not in TRUNK_SCHEDULES:
        return f"its schedule is {run.training.schedule}"
    try:
        check_trunk(trunk, run, data)
    except ValueError as error:
        return str(error)
    return ""
