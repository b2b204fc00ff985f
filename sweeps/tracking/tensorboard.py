"""TensorBoard events of each trial, on the token axis."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord

_FLUSH_EVERY_S = 10.0


@dataclass
class _File:
    writer: EventsWriter
    flushed_at: float


class TensorBoardLog:
    """Writes event files to `<trial folder>/tensorboard`, one for each time that a trial runs.

    The library's usual writer needs a thread, a pipe and an inter-process lock per file. This one writes one event per
    report, and closes the file when its trial stops running.

    Args:
        flush_every_s: Minimum seconds between two flushes of a trial's file; a report triggers them.
    """

    def __init__(self, trials_folder: Path, *, flush_every_s: float = _FLUSH_EVERY_S) -> None:
        self._folder, self._flush_every_s = trials_folder, flush_every_s
        self._open: dict[int, _File] = {}

    def on_event(self, event: TrialEvent, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A listener of the ledger."""
        if event is TrialEvent.REPORT and report is not None:
            file = self._open.get(record.number) or self._begin(record)
            values = [Summary.Value(tag=name, simple_value=value) for name, value in report.items() if name != "tokens"]
            summary = Summary(value=values)
            file.writer.write_event(Event(wall_time=time.time(), step=int(report["tokens"]), summary=summary))
            if time.monotonic() - file.flushed_at >= self._flush_every_s:
                file.writer.flush()
                file.flushed_at = time.monotonic()
        elif event in (TrialEvent.PAUSED, TrialEvent.ENDED) and record.number in self._open:
            self._open.pop(record.number).writer.close()

    def close(self) -> None:
        """Close the event files of interrupted trials."""
        for file in self._open.values():
            file.writer.close()
        self._open.clear()

    def _begin(self, record: TrialRecord) -> _File:
        folder = self._folder / record.name / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # The library names files by the second, and would truncate an existing one.
        file = _File(EventsWriter(str(folder / "events"), f".{time.time_ns()}"), time.monotonic())
        self._open[record.number] = file
        return file
