"""What a sweep or training takes over from an earlier one: found by name among the results, or by folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.input_fault import InputFault
from data_pipeline.tokenizer import load_tokenizer, vocabulary_of
from sweeps.model_folder import ModelFolder, check_tokenizer, merged_shape, model_folder
from sweeps.outcomes import Outcome
from sweeps.results import best_trial
from sweeps.results_folder import ResultsError
from sweeps.sweep_config import StartConfig, SweepConfig
from sweeps.sweep_file import load_sweep_file
from sweeps.trial_records import TrialRecord, TrialStore

BEST = "best"


@dataclass(frozen=True)
class FinishedSweep:
    """A sweep that left results."""

    folder: Path
    sweep: SweepConfig
    records: tuple[TrialRecord, ...]

    def trial(self, name: str) -> TrialRecord:
        """The best trial, or the one of this name.

        Raises:
            ResultsError: There is none, or it has nothing to go on from.
        """
        if name == BEST:
            best = best_trial(self.records)
            if best is None:
                raise ResultsError(f"no trial of {self.folder} completed, so there is no best one to go on from")
            return best
        found = next((record for record in self.records if record.name == name), None)
        if found is None or found.outcome in (Outcome.INFEASIBLE, Outcome.FAILED, Outcome.DIVERGED, None):
            what = "no such trial" if found is None else f"only one that ended as {found.outcome or 'nothing yet'}"
            usable = [one.name for one in self.records if one.outcome in (Outcome.COMPLETED, Outcome.STOPPED)]
            others = ", ".join(usable) or "none that can be gone on from"
            raise ResultsError(f"--from {name}: {self.folder} has {what}; it has {others}")
        return found

    def folder_of(self, record: TrialRecord) -> Path:
        """Where a trial's checkpoints are."""
        return TrialStore(self.folder / "trials").folder_of(record)


def finished_sweep(folder: Path) -> FinishedSweep:
    """What lies in a results folder.

    Raises:
        ResultsError: Nothing of a sweep does.
    """
    if not (folder / "sweep.yaml").is_file():
        raise ResultsError(f"{folder} is no results folder of a sweep: it has no sweep.yaml. Give results/<name>-<id>.")
    records = TrialStore(folder / "trials").load_all()
    return FinishedSweep(folder.absolute(), load_sweep_file(folder / "sweep.yaml"), tuple(records))


def find_finished(
    name: str, *, size: str, results_folder: Path, what_for: str, is_needed: bool = False
) -> FinishedSweep:
    """The newest finished sweep or training of a name and size, or the one in the folder that the name is.

    Args:
        what_for: The setting that asks, for the message.
        is_needed: Whether nothing can be done without it.

    Raises:
        ResultsError: There is none; says what to run first.
    """
    if (Path(name) / "sweep.yaml").is_file():
        return finished_sweep(Path(name))
    finished = []
    for summary in results_folder.glob(f"{name}-*/summary.json"):
        values = json.loads(summary.read_text(encoding="utf-8"))
        if values.get("name") == name and values.get("status") == "finished" and values.get("best"):
            finished.append((summary.stat().st_mtime, summary.parent))
    for _, folder in sorted(finished, reverse=True):
        found = finished_sweep(folder)
        if found.sweep.size == size:
            return found
    without = "or leave it out (pretune train ... --from file trains with the file's own settings)"
    others = "or name another one or its folder" if is_needed else f"name another one or its folder, {without}"
    raise ResultsError(
        f"{what_for}: {results_folder} holds no finished sweep or training called {name} of size {size}. Run that "
        f"first, {others}."
    )


def with_initial_weights(sweep: SweepConfig, results_folder: Path) -> SweepConfig:
    """A sweep with `start.weights_of` carried out.

    Raises:
        ResultsError: There is no such model; or the file also asks for settings, which `pretune train` takes over.
        InputFault: As `beginning_with_weights`.
    """
    if sweep.start is not None and sweep.start.settings_of is not None:
        raise ResultsError(
            "start.settings_of is for a training, and this is a sweep: use pretune train, or leave settings_of out"
        )
    return beginning_with_weights(sweep, results_folder)


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
    place, earlier = place_of_model(name, sweep.size, results_folder)
    folder = model_folder(place)
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


def place_of_model(
    name: str, size: str, results_folder: Path, *, is_needed: bool = False
) -> tuple[Path, SweepConfig | None]:
    """Where the model that `start.weights_of` names lies, and the sweep that it came of, if it is one's.

    Args:
        is_needed: Whether nothing can be done without it.

    Raises:
        ResultsError: There is none; says what to do first.
    """
    place = Path(name).expanduser()
    if (place / "config.json").is_file() or (place / "trial.json").is_file():
        return place, None
    if place.is_dir() and not (place / "sweep.yaml").is_file():
        model_folder(place)  # says what it lacks
    found = find_finished(
        name, size=size, results_folder=results_folder, what_for="start.weights_of", is_needed=is_needed
    )
    best = found.folder / "best"
    # A model that transformers has no class for is in no best/; its trial has the weights.
    return (best if (best / "config.json").is_file() else found.folder_of(found.trial(BEST))), found.sweep


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
