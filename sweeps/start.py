"""What a sweep or training takes over from an earlier one: found by name among the results, or by folder."""

import json
from dataclasses import dataclass
from pathlib import Path

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


def find_finished(name: str, *, size: str, results_folder: Path, what_for: str) -> FinishedSweep:
    """The newest finished sweep or training of a name and size, or the one in the folder that the name is.

    Args:
        what_for: The setting that asks, for the message.

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
    raise ResultsError(
        f"{what_for}: {results_folder} holds no finished sweep or training called {name} of size {size}. Run that "
        "first, name another one or its folder, or leave it out (pretune train ... --from file trains with the file's "
        "own settings)."
    )


def with_initial_weights(sweep: SweepConfig, results_folder: Path) -> SweepConfig:
    """A sweep with `start.weights_of` carried out.

    Raises:
        ResultsError: There is no such model; or the file also asks for settings, which `pretune train` takes over.
    """
    if sweep.start is not None and sweep.start.settings_of is not None:
        raise ResultsError(
            "start.settings_of is for a training, and this is a sweep: use pretune train, or leave settings_of out"
        )
    if sweep.start is None or sweep.start.weights_of is None:
        return sweep
    name = sweep.start.weights_of
    folder = Path(name)
    if not (folder / "config.json").is_file():
        found = find_finished(name, size=sweep.size, results_folder=results_folder, what_for="start.weights_of")
        folder = found.folder / "best"
    if not (folder / "config.json").is_file():
        raise ResultsError(f"start.weights_of={name}: {folder} holds no model (config.json); give a model's folder")
    training = sweep.training.model_copy(update={"initial_weights": str(folder.absolute())})
    changed = sweep.model_copy(update={"training": training})
    return with_notes(without_start(changed, "weights_of"), f"weights of {folder.absolute()}")


def notes_of(sweep: SweepConfig) -> list[str]:
    """Where a sweep's settings and weights come from, in words."""
    return [] if sweep.start is None else list(sweep.start.notes)


def with_notes(sweep: SweepConfig, *notes: str) -> SweepConfig:
    """A sweep with more said of where its settings and weights come from."""
    start = {} if sweep.start is None else sweep.start.model_dump(exclude_none=True)
    return sweep.model_copy(update={"start": StartConfig(**(start | {"notes": (*notes_of(sweep), *notes)}))})


def without_start(sweep: SweepConfig, *fields: str) -> SweepConfig:
    """A sweep of which these fields of `start` have been carried out, or are not to be."""
    left = {} if sweep.start is None else sweep.start.model_dump(exclude_defaults=True, exclude=set(fields))
    return sweep.model_copy(update={"start": StartConfig(**left) if left else None})
