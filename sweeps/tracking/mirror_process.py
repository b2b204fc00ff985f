"""The process of one mirror: it brings the records of a sweep's trial folders to another tracker.

It reads files alone, so nothing in it reaches a trial: not a crash, not a server that hangs. Lines on stdin name the
trials that changed; their end asks for the rest and for the end. `position.json` holds how far each run has come, so
that a mirror of a resumed sweep continues where the last one closed them.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.files.own_files import own_lock
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.settings import Settings
from data_pipeline.schema.user_errors import first_line
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.tracking.final_values import STATUS, final_values
from sweeps.tracking.mirror_runs import TRACKERS, RunName, TrackerRuns

GATHER_S = 2.0
"""Pause between two passes: changes in between are brought together. Parts of a run have folders named by the second,
so it is above one."""
_POSITION_FILE = "position.json"


class Position(Settings):
    """How far a trial's run has come."""

    attempt: int = 0
    """`earlier_attempts` of the record: each attempt has a run of its own."""
    tokens: float = -1.0
    """Tokens of the last report that was brought."""
    ended_at: str = ""
    """`ended_at` of the record whose end was brought."""


class Mirror:
    """Runs of one sweep in another tracker."""

    def __init__(self, sweep_folder: Path, folder: Path, runs: TrackerRuns) -> None:
        """
        Args:
            folder: The mirror's own, for the files of the tracker and the position.
        """
        self._sweep_folder, self._folder, self._runs = sweep_folder, folder, runs
        self._store = TrialStore(sweep_folder / "trials")
        self._positions = _read_positions(folder / _POSITION_FILE)
        self._on_disk = dict(self._positions)
        self._open: dict[int, str] = {}
        """Trial number to the id of its open run."""

    def numbers(self) -> list[int]:
        """All trials of the sweep."""
        return [record.number for record in self._store.load_all()]

    def bring(self, number: int) -> bool:
        """Bring what is new of a trial; False: it must wait until another run closes."""
        record = self._store.load(number)
        if record is None:
            return True
        at = self._position(record)
        # The record first: its end is written after its last report.
        reports = [one for one in self._store.reports(record) if one["tokens"] > at.tokens]
        has_ended = bool(record.ended_at) and record.ended_at != at.ended_at
        if reports or has_ended:
            if not self._has_opened(record):
                return False
            run_id = self._open[number]
            self._positions[record.name] = at
            for report in reports:
                values = {name: value for name, value in report.items() if name != "tokens"}
                self._runs.log(run_id, values, step=int(report["tokens"]))
                at = self._positions[record.name] = at.model_copy(update={"tokens": report["tokens"]})
            if has_ended:
                self._runs.finals(run_id, final_values(record), step=max(record.tokens, int(at.tokens), 0))
                self._positions[record.name] = at.model_copy(update={"ended_at": record.ended_at})
        if number in self._open and record.state != "RUNNING":
            is_bad = record.outcome is not None and STATUS[record.outcome] == "FAILED"
            self._close(number, failure=record.last_reason_line or str(record.outcome) if is_bad else "")
        return True

    def close(self) -> None:
        """Close the runs of trials that wait or train; a later mirror continues them."""
        for number in list(self._open):
            self._close(number)

    def missing(self) -> list[str]:
        """Trials whose runs are not complete."""
        return [record.name for record in self._store.load_all() if not self._is_whole(record)]

    def _is_whole(self, record: TrialRecord) -> bool:
        at = self._position(record)
        last = max((report["tokens"] for report in self._store.reports(record)), default=-1.0)
        return at.tokens >= last and at.ended_at == record.ended_at

    def _position(self, record: TrialRecord) -> Position:
        at = self._positions.get(record.name, Position())
        return at if at.attempt == record.earlier_attempts else Position(attempt=record.earlier_attempts)

    def _has_opened(self, record: TrialRecord) -> bool:
        if record.number in self._open:
            return True
        if len(self._open) >= self._runs.most_open:
            if record.state == "RUNNING":
                return False  # It has time: its reports are on disk.
            self._close(next(iter(self._open)))
        run = run_name(self._sweep_folder, record)
        self._runs.open(run)
        self._open[record.number] = run.id
        return True

    def _close(self, number: int, *, failure: str = "") -> None:
        self._runs.close(self._open.pop(number), failure=failure)
        # Only now: a tracker keeps rows in memory until then. After a kill they come again, and are the same.
        text = json.dumps({name: one.model_dump() for name, one in self._closed().items()}, indent=1)
        write_atomically(self._folder / _POSITION_FILE, text + "\n")

    def _closed(self) -> dict[str, Position]:
        """Positions of the runs that are not open."""
        open_names = {f"trial-{number:04d}" for number in self._open}
        kept = {name: one for name, one in self._on_disk.items() if name in open_names}
        self._on_disk = kept | {name: one for name, one in self._positions.items() if name not in open_names}
        return self._on_disk


def run_name(sweep_folder: Path, record: TrialRecord) -> RunName:
    """Name of a trial's run: the same in every part, another for each attempt."""
    identity = sweep_folder.name.rpartition("-")[2]
    attempt = f"_{record.earlier_attempts + 1}" if record.earlier_attempts else ""
    return RunName(f"{identity}_{record.number:04d}{attempt}", record.name, sweep_folder.name, record.settings)


def follow(mirror: Mirror, news: int, tell: Callable[[dict[str, object]], None]) -> None:
    """Bring trials as they change until the news end, then the rest.

    Args:
        news: File descriptor with lines of trial numbers.
        tell: Receives failures as they happen, each kind once, and the trials that are missing at the end.
    """
    said: set[str] = set()

    def bring(number: int) -> bool:
        try:
            return mirror.bring(number)
        except Exception as error:  # A library of others may raise anything; the next pass tries again.
            why = first_line(error)
            if why not in said:
                said.add(why)
                tell({"failed": why})
            return True

    changed, has_ended = set(mirror.numbers()), False
    while not has_ended:
        changed = {number for number in sorted(changed) if not bring(number)}
        new, has_ended = _gathered(news, has_waiting=bool(changed))
        changed |= new
    for number in mirror.numbers():
        bring(number)
    mirror.close()
    tell({"missing": mirror.missing()})


def _gathered(news: int, *, has_waiting: bool) -> tuple[set[int], bool]:
    """Numbers of trials that changed, and whether no more will come."""
    if not has_waiting:
        select.select([news], [], [])
    time.sleep(GATHER_S)
    text = b""
    while select.select([news], [], [], 0)[0]:
        piece = os.read(news, 1 << 16)
        if not piece:
            return _numbers(text), True
        text += piece
    return _numbers(text), False


def _numbers(text: bytes) -> set[int]:
    return {int(line) for line in text.split() if line.isdigit()}


def _read_positions(path: Path) -> dict[str, Position]:
    try:
        return {
            name: Position.model_validate(one) for name, one in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, ValidationError, AttributeError):
        return {}  # All is brought again: a step that a run has already is the same there.


def main() -> None:
    """Mirror one sweep; arguments: the tracker, the sweep's folder."""
    kind, sweep_folder = sys.argv[1], Path(sys.argv[2])
    # The libraries print on stdout, which is for our answers; they get the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    os.nice(10)  # Training comes first.

    def tell(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")

    folder = sweep_folder / "mirrors" / kind
    try:
        # The mirror of a killed driver may still be at its end.
        with own_lock(folder / "lock"):
            follow(Mirror(sweep_folder, folder, TRACKERS[kind](folder)), 0, tell)
    except Exception as error:
        tell({"failed": first_line(error)})
        raise


if __name__ == "__main__":
    main()
