"""Event files as TensorBoard reads them: length, checksum, event, checksum."""

import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from sweep_examples import record
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.tracking.tensorboard import TensorBoardLog


def events(file: Path) -> Iterator[Event]:
    data = file.read_bytes()
    while data:
        (length,), (checksum,) = struct.unpack("Q", data[:8]), struct.unpack("I", data[8:12])
        assert checksum == masked_crc32c(data[:8])
        assert struct.unpack("I", data[12 + length : 16 + length]) == (masked_crc32c(data[12 : 12 + length]),)
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard would draw of all the files of a trial."""
    found = []
    for file in sorted((folder / "trial-0001" / "tensorboard").glob("events*")):
        first, *rest = events(file)
        assert first.file_version == "brain.Event:2"
        found += [(event.step, one.simple_value) for event in rest for one in event.summary.value if one.tag == name]
    return found


def open_files(folder: Path) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(str(folder))]


def test_every_report_is_an_event_at_its_tokens_though_the_trial_pauses_and_goes_on_within_a_second(
    tmp_path: Path,
) -> None:
    log = TensorBoardLog(tmp_path)
    trial = record(1, Outcome.COMPLETED)
    for leg in range(3):
        for step in range(4):
            tokens = 1000.0 * (4 * leg + step)
            log.on_event(TrialEvent.REPORT, trial, {"tokens": tokens, "loss": tokens / 2, "rate": -tokens})
        # A trial that waits, of which there may be a thousand, holds no file open.
        log.on_event(TrialEvent.PAUSED if leg < 2 else TrialEvent.ENDED, trial, None)
        assert open_files(tmp_path) == []
    assert curve(tmp_path, "loss") == [(1000 * number, 500.0 * number) for number in range(12)]
    assert curve(tmp_path, "rate") == [(1000 * number, -1000.0 * number) for number in range(12)]


def test_what_a_running_trial_reports_can_be_seen_before_it_ends_and_what_is_cut_off_is_kept(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, flush_every_s=0.0)
    log.on_event(TrialEvent.REPORT, record(1, None), {"tokens": 5.0, "loss": 1.0})
    assert curve(tmp_path, "loss") == [(5, 1.0)]
    late = TensorBoardLog(tmp_path, flush_every_s=1e9)
    late.on_event(TrialEvent.REPORT, record(1, None), {"tokens": 6.0, "loss": 2.0})
    late.close()
    assert curve(tmp_path, "loss") == [(5, 1.0), (6, 2.0)]
