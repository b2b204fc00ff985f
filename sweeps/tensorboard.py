"""TensorBoard events of each trial, on the token axis."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from sweeps.trial_records import TrialRecord


class TensorBoardLog:
    """One event file a trial, in `<trial folder>/tensorboard`."""

    def __init__(self, trials_folder: Path) -> None:
        self._folder = trials_folder
        self._writers: dict[int, SummaryWriter] = {}

    def on_event(self, event: str, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A ledger listener: `started`, `report`, `ended`."""
        if event == "report" and report is not None:
            writer = self._writers.get(record.number)
            if writer is None:
                writer = SummaryWriter(str(self._folder / record.name / "tensorboard"))
                self._writers[record.number] = writer
            for name, value in report.items():
                if name != "tokens":
                    writer.add_scalar(name, value, global_step=int(report["tokens"]))
        elif event == "ended" and record.number in self._writers:
            self._writers.pop(record.number).close()

    def close(self) -> None:
        """Finish the event files of trials that were cut off."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
