"""A sweep file that was changed and given again: what changed, and which finished trials still hold.

A changed file is another sweep, with a folder and an identity of its own. What was learnt under the earlier one is not
lost: a finished trial whose training would be the same again is taken over as a record, and says where it comes from.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.model_files.checkpoint import newest_checkpoint
from core.settings.run_config import RunConfig
from data_pipeline.schema.whole_files import write_atomically
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SweepFolder, folder_name, sweep_identity
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.search_space import Distribution, holds
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file

CHANGES_FILE = "changes.json"
"""In a sweep's folder: what it was compared with when it began, and what it took over."""
TAKEN_OVER = "taken over"
"""What `chosen_by` says of a trial of an earlier sweep."""

_CHANGES_NOTHING_LEARNT = {"micro_batch_size", "activation_checkpointing", "on_oom"}
"""Settings of training that are a matter of memory and speed alone."""
_NOT_SET = "not set"


@dataclass(frozen=True)
class EarlierSweep:
    """Another sweep of the same name in the same results folder."""

    folder: Path
    sweep: SweepConfig
    has_same_data: bool

    def is_valid_in(self, sweep: SweepConfig, record: TrialRecord) -> bool:
        """Whether training a trial under another file would come to what its record says."""
        if not self.has_same_data or self.sweep.stages != sweep.stages:
            return False
        if _settings_in(sweep, self.sweep, record) is None:
            return False
        stops_alike = self.sweep.early_stopping == sweep.early_stopping
        # A trial that early stopping ended says nothing under another rule. What ran out of memory is not taken over
        # as a trial: the memory file of the results folder knows it, and refuses it where that still holds.
        return record.outcome in (Outcome.COMPLETED, Outcome.DIVERGED) or (
            record.outcome is Outcome.STOPPED and stops_alike
        )


def begin(
    folder: SweepFolder, sweep: SweepConfig, data_fingerprint: str, store: TrialStore, *, say: Callable[[str], None]
) -> None:
    """If the sweep begins now and another of its name is there: say what changed, and take over what still holds.

    Killed in the middle and called again, it goes on; once it is through, it does nothing.
    """
    known = store.load_all()
    if (folder.path / CHANGES_FILE).exists() or any(record.chosen_by != TAKEN_OVER for record in known):
        return
    earlier = find_earlier(folder.path, sweep.name, data_fingerprint)
    changed = taken = None
    if earlier is not None:
        changed = list(changes(earlier.sweep, sweep))
        if not earlier.has_same_data:
            changed.append("the corpus's own bytes, or how they are read")
        say(f"changed  {folder.path.name} is a new sweep; against {earlier.folder.name}:")
        for one in changed:
            say(f"           {one}")
        taken = _take_over(earlier, sweep, store, known)
        names = ", ".join(Path(record.taken_over_from).name for record in taken)
        say(f"         {len(taken)} finished trials still hold and are taken over" + (f": {names}" if taken else ""))
        say(f"         to go on with the earlier one instead: pretune sweep {earlier.folder / 'sweep.yaml'}")
    said = {
        "compared_with": None if earlier is None else earlier.folder.name,
        "changes": changed or [],
        "taken_over": {record.name: record.taken_over_from for record in taken or []},
    }
    write_atomically(folder.path / CHANGES_FILE, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def find_earlier(mine: Path, name: str, data_fingerprint: str) -> EarlierSweep | None:
    """The sweep of this name that was started last, besides the one whose folder is given; None if there is none."""
    files = [file for file in mine.parent.glob(f"{name}-*/sweep.yaml") if file.parent != mine]
    for file in sorted(files, key=lambda one: one.stat().st_mtime, reverse=True):
        try:
            sweep = load_sweep_file(file)
        except SettingsFileError:
            continue  # Of a version with other settings: nothing to compare with.
        if sweep.name == name:
            # An identity is made of the file and the data: with ours it comes out only if theirs are the same.
            is_same = folder_name(sweep, sweep_identity(sweep, data_fingerprint)) == file.parent.name
            return EarlierSweep(file.parent, sweep, is_same)
    return None


def changes(before: SweepConfig, now: SweepConfig) -> Iterator[str]:
    """`dotted.path: old -> new` for every setting that differs."""
    old, new = dict(_flat("", before)), dict(_flat("", now))
    for path in dict.fromkeys([*old, *new]):
        if old.get(path, _NOT_SET) != new.get(path, _NOT_SET):
            yield f"{path}: {_in_words(old.get(path, _NOT_SET))} -> {_in_words(new.get(path, _NOT_SET))}"


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Distribution):
        yield prefix, str(value)
    elif isinstance(value, BaseModel | dict):
        for name, inner in (dict(value) if isinstance(value, BaseModel) else value).items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    else:
        yield prefix, value


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)


def _settings_in(now: SweepConfig, before: SweepConfig, record: TrialRecord) -> dict[str, Any] | None:
    """A trial's settings as another file would sweep them; None where they are not in its space, or train otherwise."""
    run = before.run_config(record.settings)
    settings = {path: _value_at(run, path) for path in now.search}
    for path, distribution in now.search.items():
        if not holds(distribution.to_optuna(), settings[path]):
            return None  # Also `auto`, or nothing at all, where the space has numbers.
    return settings if _learnt_by(now.run_config(settings)) == _learnt_by(run) else None


def _value_at(run: RunConfig, path: str) -> Any:
    value: Any = run
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def _learnt_by(run: RunConfig) -> dict[str, Any]:
    return run.model_dump(exclude={"training": _CHANGES_NOTHING_LEARNT})


def _take_over(
    earlier: EarlierSweep, sweep: SweepConfig, store: TrialStore, known: Sequence[TrialRecord]
) -> list[TrialRecord]:
    origin = TrialStore(earlier.folder / "trials")
    valid = _with_a_winner([one for one in origin.load_all() if earlier.is_valid_in(sweep, one)], origin.folder)
    taken = list(known)
    for record in valid:
        came_from = f"{earlier.folder.name}/{record.name}"
        if any(one.taken_over_from == came_from for one in taken):
            continue
        changes: dict[str, Any] = {
            "number": len(taken) + 1,
            "settings": _settings_in(sweep, earlier.sweep, record),
            "chosen_by": TAKEN_OVER,
            "taken_over_from": came_from,
        }
        if earlier.sweep.early_stopping != sweep.early_stopping:
            changes["rung_losses"] = {}
        new = record.model_copy(update=changes)
        _copy(origin.folder / record.name, store.folder_of(new))
        # Last: a trial with a record is there whole.
        store.save(new)
        taken.append(new)
    return taken


def _with_a_winner(records: Sequence[TrialRecord], trials: Path) -> list[TrialRecord]:
    """Without the trials that would win, and whose weights are gone: those are worth training again."""

    def loss(record: TrialRecord) -> float:
        return float("inf") if record.loss is None else record.loss

    completed = [record for record in records if record.outcome is Outcome.COMPLETED]
    kept = [loss(record) for record in completed if newest_checkpoint(trials / record.name) is not None]
    best = min(kept, default=float("inf"))
    return [record for record in records if record.outcome is not Outcome.COMPLETED or (kept and loss(record) >= best)]


def _copy(source: Path, target: Path) -> None:
    """A trial's folder but for its record; large files are linked, for nobody writes into one that is there."""
    shutil.copytree(
        source, target, copy_function=_link, dirs_exist_ok=True, ignore=shutil.ignore_patterns("trial.json", ".*")
    )


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    if not source.endswith(".safetensors"):
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
