"""The results folder of one sweep: its identity, its lock, its files."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from core.user_code.class_source import SOURCE_FILE
from data_pipeline.files.own_files import fresh, make_folder
from data_pipeline.files.plain_json import parse_object
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.corpus_config import YOUNGER
from data_pipeline.schema.user_errors import InputFault, first_line
from sweeps.records.sweep_lock import hold
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS_COLUMN
from sweeps.settings.class_of_file import source_of
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep

MAP_FILE = "memory_frontier.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"
"""File in a sweep's folder that names the process running the sweep."""
LOG_FILE = "ray.log"
"""File in the results folder with the log of Ray and other libraries."""

_IDENTITY_CHARACTERS = 8


class ResultsError(InputFault):
    """The results folder cannot be used; the message gives the reason and a remedy."""


def check_writable(results_folder: Path) -> None:
    """Create the results folder and check that it is writable.

    Raises:
        ResultsError: It is not writable.
    """
    try:
        make_folder(results_folder)
        probe = results_folder / f".probe-{os.getpid()}"
        open(probe, "wb", opener=fresh).close()
        probe.unlink()
    except OSError as error:
        raise ResultsError(
            f"the results folder {results_folder} cannot be written ({error.strerror or error}). "
            "Name another folder with --results FOLDER."
        ) from error


def sweep_identity(sweep: SweepConfig, data_fingerprint: str, tasks_fingerprint: str = "") -> str:
    """Hash of all that determines a sweep: the resolved file and the data. An equal identity resumes the sweep.

    Args:
        tasks_fingerprint: Of the labelled rows of its tasks; not used for a sweep without tasks.
    """
    # Notes are sentences for people; another wording is not another training.
    silent = sweep.model_copy(update={"start": sweep.start and sweep.start.model_copy(update={"notes": ()})})
    # Excluding fields that are newer than the first results keeps those valid. A resolved file never sets shorten_to,
    # and the fingerprint of the data holds the files that follow_links adds and the effect of how they are read.
    newer: dict[str, Any] = {"budget": {"shorten_to"}, "corpus": {*YOUNGER, "longest_row", "expands_to"}}
    newer["resources"] = {"price_per_hour"}  # A higher price is the same sweep.
    newer["trust_code"] = True  # Leave to run code changes no training; the model holds the digest of the class.
    if sweep.early_stopping.method != "full-length":
        newer["early_stopping"] = {"probe_lengths", "confirm"}
        newer["budget"].add("search_share")
    if not sweep.evaluation.tasks:
        newer["evaluation"] = {"tasks"}
    if sweep.metric is None:
        newer["metric"] = True
    values = silent.model_dump(mode="json", exclude=newer)
    if not sweep.search_from:
        del values["search_from"]  # Younger than the first results.
    del values["tracking"]  # Records elsewhere are those of the same sweep.
    canonical = json.dumps(values, sort_keys=True)
    data = data_fingerprint + (f"\n{tasks_fingerprint}" if sweep.evaluation.tasks else "")
    return hashlib.sha256(f"{canonical}\n{data}".encode()).hexdigest()


def folder_name(sweep: SweepConfig, identity: str) -> str:
    """Name of a sweep's folder: the sweep's name and the start of its identity."""
    return f"{sweep.name}-{identity[:_IDENTITY_CHARACTERS]}"


def ended_sweeps(results_folder: Path, name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Folders of the sweeps and trainings of this name that wrote a summary, each with it, newest first.

    An unreadable summary is left out; opening its sweep names the fault.
    """
    if Path(name).name != name:
        return []
    found = []
    for file in results_folder.glob(f"{name}-*/summary.json"):
        try:
            summary, time_s = read_summary(file.parent), file.stat().st_mtime
        except (OSError, ResultsError):
            continue
        # Another name may begin with this one and a dash.
        if summary.get("name", name) == name:
            found.append((time_s, file.parent, summary))
    return [(folder, summary) for _, folder, summary in sorted(found, key=lambda one: one[:2], reverse=True)]


def may_be_finished(results_folder: Path, name: str) -> bool:
    """Whether any sweep of this name has finished in the results folder."""
    return any(summary.get("status") == SweepStatus.FINISHED for _, summary in ended_sweeps(results_folder, name))


def read_summary(folder: Path, *, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The contents of summary.json in the results folder of a sweep or training.

    Args:
        needs: Entries without which the caller can do nothing.

    Raises:
        ResultsError: The folder has no summary.json, or one that is damaged.
    """
    path = folder / SUMMARY_FILE
    try:
        summary = parse_object(path.read_bytes())
    except FileNotFoundError as error:
        raise ResultsError(
            f"{folder} is no results folder of a sweep: it has no summary.json. Give results/<name>-<id>."
        ) from error
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {first_line(error)}. {_SUMMARY_REMEDY}") from error
    faults = [f"has no {name}" for name in needs if name not in summary]
    for name, kind in _KINDS.items():
        if name in summary and not isinstance(summary[name], kind):
            faults.append(f"has {name} of the kind {type(summary[name]).__name__}")
    for name in _OF_NUMBERS:
        counts = summary.get(name)
        faults += [
            f"has {name}.{key} that is no number"
            for key, value in (counts.items() if isinstance(counts, dict) else ())
            if not _is_number(value)
        ]
    if not _is_number(summary.get("wall_s", 0)):
        faults.append("has wall_s that is no number")
    best = summary.get("best")
    if isinstance(best, dict) and not isinstance(best.get(LOSS_COLUMN), int | float | None):
        faults.append(f"has best.{LOSS_COLUMN} that is no number")
    if faults:
        raise ResultsError(f"{path} is damaged: it {', '.join(faults[:5])}. {_SUMMARY_REMEDY}")
    return summary


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -_LARGEST < value < _LARGEST


_LARGEST = 1e15
_OF_NUMBERS = ("outcomes", "training_s_by_outcome")
_KINDS: dict[str, Any] = {"name": str, "status": str, "best": dict | None, "data": dict} | dict.fromkeys(
    _OF_NUMBERS, dict
)
_SUMMARY_REMEDY = "Give another folder, or delete that file: the same command writes it again."


class SweepFolder:
    """`results/<name>-<first 8 of the identity>/`."""

    def __init__(self, results_folder: Path, sweep: SweepConfig, identity: str) -> None:
        self.path = (results_folder / folder_name(sweep, identity)).absolute()
        self.identity = identity
        self.sweep = sweep

    @property
    def trials(self) -> Path:
        """Folder with one subfolder per trial."""
        return self.path / "trials"

    @property
    def best(self) -> Path:
        """Folder of the winner, for Hugging Face transformers."""
        return self.path / "best"

    @property
    def ray_state(self) -> Path:
        """Folder for the state of Ray Train, which holds no pickle; pretune never reads it."""
        return self.path / ".ray"

    def create(self) -> None:
        """Create the folder and write the resolved sweep file."""
        self.trials.mkdir(parents=True, exist_ok=True)
        header = f"# Resolved sweep file: every default written out. Identity {self.identity}.\n"
        write_atomically(self.path / "sweep.yaml", header + dump_sweep(self.sweep))
        model = self.sweep.model
        code = None if model.class_ is None else source_of(model.class_, model.class_digest)
        if code is not None:
            write_atomically(self.path / SOURCE_FILE, json.dumps(code.as_json(), indent=1) + "\n")

    def summary(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Content of summary.json from an earlier run of this sweep; None without one.

        A damaged one counts as none: the trials have records of their own, and the end of this run writes it again.

        Args:
            say: Called with a line about a damaged one.
        """
        if not (self.path / SUMMARY_FILE).exists():
            return None
        try:
            return read_summary(self.path, needs=("status", "wall_s"))
        except ResultsError:
            say(f"summary  {self.path / SUMMARY_FILE} is damaged; the end of this run writes it again")
            return None

    def locked(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Hold the folder for this process; see `hold`."""
        return hold(self.path / LOCK_FILE, say=say)
