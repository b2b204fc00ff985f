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
    """Event files of each trial, in `<trial folder>/tensorboard`: one for each time that it runs.

    The library's usual writer has a thread, a pipe and a lock between processes for each file. Here there is an event
    a report, and a file is open no longer than its trial runs.

    Args:
        flush_every_s: A trial's reports can be seen that long after they came, if others have come since.
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
        """Finish the event files of trials that were cut off."""
        for file in self._open.values():
            file.writer.close()
        self._open.clear()

    def _begin(self, record: TrialRecord) -> _File:
        folder = self._folder / record.name / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # The library tells files apart by the second, and would empty one that is there.
        file = _File(EventsWriter(str(folder / "events"), f".{time.time_ns()}"), time.monotonic())
        self._open[record.number] = file
        return file
