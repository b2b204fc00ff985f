"""A changed sweep file: lists the changes and takes over the finished trials that are still valid.

A changed file is a new sweep with its own folder and identity. A finished trial of the earlier sweep is taken over as a
record if its training would be the same again. The record names its origin.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.model_files.checkpoint import newest_checkpoint
from core.settings.run_config import RunConfig
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.dotted_paths import flattened, value_at
from sweeps.records.outcomes import Outcome
from sweeps.records.printed_commands import command_line
from sweeps.records.results_folder import SweepFolder, folder_name, sweep_identity
from sweeps.records.trial_records import ChosenBy, TrialRecord, TrialStore
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file

CHANGES_FILE = "changes.json"
"""File in a sweep's folder: the earlier sweep it was compared with, the changes, and the trials it took over."""

_CHANGES_NOTHING_LEARNT = {"micro_batch_size", "activation_checkpointing", "on_oom"}
"""Settings of training that affect only memory and speed."""
_NOT_SET = "not set"


@dataclass(frozen=True)
class EarlierSweep:
    """Another sweep of the same name in the same results folder."""

    folder: Path
    sweep: SweepConfig
    has_same_data: bool

    def is_valid_in(self, sweep: SweepConfig, record: TrialRecord) -> bool:
        """Whether training a trial under another file would give the result in its record."""
        if not self.has_same_data or self.sweep.stages != sweep.stages:
            return False
        if self.sweep.evaluation.tasks != sweep.evaluation.tasks:
            return False  # Its record lacks metrics, or has those of other tasks.
        if _settings_in(sweep, self.sweep, record) is None:
            return False
        stops_alike = self.sweep.early_stopping == sweep.early_stopping
        # A stopped trial is valid only under the same stopping rule. A trial that ran out of memory is not taken over:
        # the memory file of the results folder records it and refuses the settings where that still holds.
        return record.outcome in (Outcome.COMPLETED, Outcome.DIVERGED) or (
            record.outcome is Outcome.STOPPED and stops_alike
        )


def begin(
    folder: SweepFolder,
    sweep: SweepConfig,
    data_fingerprint: str,
    store: TrialStore,
    *,
    results: str | Path,
    say: Callable[[str], None],
    tasks_fingerprint: str = "",
) -> None:
    """Compare a new sweep with the earlier one of its name: report the changes, take over the valid trials.

    Does nothing if there is no earlier sweep, or if this comparison was finished before. If killed, the next call
    resumes it.

    Args:
        results: Results folder or URI of the sweep, for the command that resumes the earlier one.
        tasks_fingerprint: As `sweep_identity` takes it.
    """
    known = store.load_all()
    if (folder.path / CHANGES_FILE).exists() or any(record.chosen_by is not ChosenBy.TAKEN_OVER for record in known):
        return
    earlier = find_earlier(folder.path, sweep.name, data_fingerprint, tasks_fingerprint)
    changed = taken = None
    if earlier is not None:
        changed = list(changes(earlier.sweep, sweep))
        if not earlier.has_same_data:
            also = " or of the tasks" if earlier.sweep.evaluation.tasks or sweep.evaluation.tasks else ""
            changed.append(f"the content of the corpus{also}, or how it is read")
        say(f"changed  {folder.path.name} is a new sweep; changes from {earlier.folder.name}:")
        for one in changed:
            say(f"           {one}")
        taken = _take_over(earlier, sweep, store, known)
        names = ", ".join(Path(record.taken_over_from).name for record in taken)
        say(f"         {len(taken)} finished trials are still valid and taken over" + (f": {names}" if taken else ""))
        resumes = command_line("sweep", earlier.folder / "sweep.yaml", results=results)
        say(f"         To resume the earlier sweep: {resumes}")
    said = {
        "compared_with": None if earlier is None else earlier.folder.name,
        "changes": changed or [],
        "taken_over": {record.name: record.taken_over_from for record in taken or []},
    }
    write_atomically(folder.path / CHANGES_FILE, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def find_earlier(mine: Path, name: str, data_fingerprint: str, tasks_fingerprint: str = "") -> EarlierSweep | None:
    """The latest other sweep of this name in the results folder; None if there is none.

    Args:
        mine: Folder of the sweep itself.
        tasks_fingerprint: As `sweep_identity` takes it.
    """
    files = [file for file in mine.parent.glob(f"{name}-*/sweep.yaml") if file.parent != mine]
    for file in sorted(files, key=lambda one: one.stat().st_mtime, reverse=True):
        try:
            sweep = load_sweep_file(file)
        except SettingsFileError:
            continue  # Written by a version with other settings: not comparable.
        if sweep.name == name:
            # The identity hashes file and data: their file with our data gives their folder only if the data is equal.
            identity = sweep_identity(sweep, data_fingerprint, tasks_fingerprint)
            return EarlierSweep(file.parent, sweep, folder_name(sweep, identity) == file.parent.name)
    return None


def changes(before: SweepConfig, now: SweepConfig) -> Iterator[str]:
    """`dotted.path: old -> new` for every setting that differs."""
    old, new = _flat(before), _flat(now)
    for path in dict.fromkeys([*old, *new]):
        if old.get(path, _NOT_SET) != new.get(path, _NOT_SET):
            yield f"{path}: {_in_words(old.get(path, _NOT_SET))} -> {_in_words(new.get(path, _NOT_SET))}"


def _flat(sweep: SweepConfig) -> dict[str, Any]:
    # The corpus as records show it: an earlier sweep file has no signatures of URLs.
    values = dict(sweep) | {name: getattr(sweep, name).model_dump(mode="json") for name in ("corpus", "model")}
    del values["trust_code"]  # No resolved file has it.
    values |= {"search": {path: str(swept) for path, swept in sweep.search.items()}}
    return {path: value for path, value in flattened(values) if value != {}}


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)


def _settings_in(now: SweepConfig, before: SweepConfig, record: TrialRecord) -> dict[str, Any] | None:
    """A trial's settings in the search space of another file; None if they lie outside it or train differently."""
    run = before.run_config(record.settings)
    settings = {path: value_at(run, path) for path in now.search}
    for path, distribution in now.search.items():
        if not distribution.holds(settings[path]):
            return None  # Also `auto`, or nothing at all, where the space has numbers.
    if now.fault_of(settings) is not None:
        return None  # Its values break a rule beside the settings that the file now has.
    return settings if _learnt_by(now.run_config(settings)) == _learnt_by(run) else None


def _learnt_by(run: RunConfig) -> dict[str, Any]:
    return run.model_dump(exclude={"training": _CHANGES_NOTHING_LEARNT})


def _take_over(
    earlier: EarlierSweep, sweep: SweepConfig, store: TrialStore, known: Sequence[TrialRecord]
) -> list[TrialRecord]:
    origin = TrialStore(earlier.folder / "trials")
    valid = _with_a_winner(
        [
            one.model_copy(update={"ranked_by": sweep.ranked_by})
            for one in origin.load_all()
            if earlier.is_valid_in(sweep, one)
        ],
        origin.folder,
    )
    taken = list(known)
    for record in valid:
        came_from = f"{earlier.folder.name}/{record.name}"
        if any(one.taken_over_from == came_from for one in taken):
            continue
        changes: dict[str, Any] = {
            "number": len(taken) + 1,
            "settings": _settings_in(sweep, earlier.sweep, record),
            "chosen_by": ChosenBy.TAKEN_OVER,
            "taken_over_from": came_from,
        }
        if earlier.sweep.early_stopping != sweep.early_stopping:
            changes["rung_losses"] = {}
        new = record.model_copy(update=changes)
        _copy(origin.folder / record.name, store.folder_of(new))
        # Save the record last: a trial with a record is complete.
        store.save(new)
        taken.append(new)
    return taken


def _with_a_winner(records: Sequence[TrialRecord], trials: Path) -> list[TrialRecord]:
    """The records without would-be winners that have no weights left: these are trained again."""

    def cost(record: TrialRecord) -> float:
        return float("inf") if record.cost is None else record.cost

    completed = [record for record in records if record.outcome is Outcome.COMPLETED]
    kept = [cost(record) for record in completed if newest_checkpoint(trials / record.name) is not None]
    best = min(kept, default=float("inf"))
    return [record for record in records if record.outcome is not Outcome.COMPLETED or (kept and cost(record) >= best)]


def _copy(source: Path, target: Path) -> None:
    """Copy a trial's folder without its record and without links, which somebody else has put there.

    Weights are hard-linked: existing ones are never modified.
    """
    shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True, ignore=_left_out)


def _left_out(folder: str, names: list[str]) -> set[str]:
    return {
        name for name in names if name == "trial.json" or name.startswith(".") or (Path(folder) / name).is_symlink()
    }


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    if not source.endswith(".safetensors"):
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
