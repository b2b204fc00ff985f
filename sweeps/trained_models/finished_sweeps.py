"""Finished sweeps and their models, found by name."""

from dataclasses import dataclass
from pathlib import Path

from sweeps.analysis.result_tables import best_trial
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import ResultsError, ended_sweeps
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.trained_models.model_folder import model_folder

BEST = "best"


@dataclass(frozen=True)
class FinishedSweep:
    """The results of a sweep."""

    folder: Path
    sweep: SweepConfig
    records: tuple[TrialRecord, ...]

    def trial(self, name: str) -> TrialRecord:
        """The best trial, or the one of this name.

        Raises:
            ResultsError: The trial does not exist, or has no usable weights.
        """
        if name == BEST:
            best = best_trial(self.records)
            if best is None:
                raise ResultsError(f"no trial of {self.folder} completed, so there is no best trial; resume the sweep")
            return best
        found = next((record for record in self.records if record.name == name), None)
        if found is None or found.outcome in (Outcome.INFEASIBLE, Outcome.FAILED, Outcome.DIVERGED, None):
            what = "no such trial" if found is None else f"no weights of it ({found.outcome or 'not ended'})"
            usable = [one.name for one in self.records if one.outcome in (Outcome.COMPLETED, Outcome.STOPPED)]
            others = ", ".join(usable) or "no trial with weights"
            raise ResultsError(f"--from {name}: {self.folder} has {what}; it has {others}")
        return found

    def folder_of(self, record: TrialRecord) -> Path:
        """The folder of a trial, with its checkpoints."""
        return TrialStore(self.folder / "trials").folder_of(record)


def finished_sweep(folder: Path) -> FinishedSweep:
    """The sweep in a results folder.

    Raises:
        ResultsError: The folder holds no sweep.
    """
    if not (folder / "sweep.yaml").is_file():
        raise ResultsError(f"{folder} is no results folder of a sweep: it has no sweep.yaml. Give results/<name>-<id>.")
    records = TrialStore(folder / "trials").load_all()
    return FinishedSweep(folder.absolute(), load_sweep_file(folder / "sweep.yaml"), tuple(records))


def find_finished(
    name: str, *, size: str, results_folder: Path, what_for: str, is_needed: bool = False, any_size: bool = False
) -> FinishedSweep:
    """The newest finished sweep or training of a name and size, or the one in the folder that the name is.

    Args:
        what_for: Setting that names the sweep, for the message.
        is_needed: Whether the setting cannot be left out.
        any_size: Whether a sweep of another size will do where none has this size.

    Raises:
        ResultsError: No such sweep; the message names the command to run first.
    """
    if (Path(name) / "sweep.yaml").is_file():
        return finished_sweep(Path(name))
    others_of_name = []
    for folder, summary in ended_sweeps(results_folder, name):
        if summary.get("status") == SweepStatus.FINISHED and summary.get("best"):
            found = finished_sweep(folder)
            if found.sweep.size == size:
                return found
            others_of_name.append(found)
    if any_size and others_of_name:
        return others_of_name[0]
    without = "or leave the setting out (--from file trains with the file's own settings)"
    others = "or name another sweep or its folder" if is_needed else f"name another sweep or its folder, {without}"
    raise ResultsError(
        f"{what_for}: {results_folder} holds no finished sweep or training called {name} of size {size}. Run it "
        f"first, {others}."
    )


def folder_of_model(
    name: str, size: str, results_folder: Path, *, is_needed: bool = False
) -> tuple[Path, SweepConfig | None]:
    """Folder of the model that `start.weights_of` names, and its sweep; None for a folder of transformers or a trial.

    Args:
        is_needed: Whether the setting cannot be left out.

    Raises:
        ResultsError: No such model; the message names the remedy.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file() or (path / "trial.json").is_file():
        return path, None
    if path.is_dir() and not (path / "sweep.yaml").is_file():
        model_folder(path)  # Raises with the missing parts.
    found = find_finished(
        name, size=size, results_folder=results_folder, what_for="start.weights_of", is_needed=is_needed
    )
    best = found.folder / "best"
    # best/ is missing for a model without a class in transformers; its trial has the weights.
    return (best if (best / "config.json").is_file() else found.folder_of(found.trial(BEST))), found.sweep
