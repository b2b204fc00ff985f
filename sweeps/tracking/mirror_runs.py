"""Runs of other trackers, one interface for all: open, log, end.

Used in the process of a mirror alone: these libraries start threads and processes, and swanlab has one open run per
process. A run that is opened again under its id continues, also offline, where `wandb sync` and `swanlab sync` join the
parts.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sweeps.tracking.final_values import PROJECT

_MOST_OPEN = 32
"""Open runs of wandb: each has a file and a stream."""


@dataclass(frozen=True)
class RunName:
    """Name and place of a trial's run; equal for all parts of the run."""

    id: str
    """Unique among all sweeps, and for each attempt of a trial."""
    trial: str
    sweep: str
    """Folder of the sweep: the group of its trials."""
    settings: Mapping[str, Any]
    """Swept settings by dotted path, as MLflow's parameters."""


class TrackerRuns(Protocol):
    """Open runs of one tracker."""

    most_open: int
    """Runs that may be open at once."""

    def open(self, run: RunName) -> None:
        """Begin a run, or continue it under its id."""

    def log(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        """Log values at a step; steps of a run never decrease."""

    def finals(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        """Record the final figures of a run that ended at a step."""

    def close(self, run_id: str, *, failure: str = "") -> None:
        """Close a run, for now or for good.

        Args:
            failure: Why the training failed, in words; empty: it did not.
        """


class WandbRuns:
    """Runs of W&B; mode and login are those of its environment variables."""

    most_open = _MOST_OPEN

    def __init__(self, folder: Path) -> None:
        import wandb

        self._wandb, self._folder = wandb, folder
        self._open: dict[str, Any] = {}

    def open(self, run: RunName) -> None:
        """Begin a run, or continue it."""
        # What pretune records already, or what names the user's files and machine, is left out.
        settings = self._wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True,
            x_save_requirements=False,
        )  # fmt: skip
        self._open[run.id] = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=run.sweep, job_type="trial", name=run.trial,
            id=run.id, resume="allow", config=dict(run.settings), dir=str(self._folder), reinit="create_new",
            settings=settings,
        )  # fmt: skip

    def log(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        """Log values at a step."""
        self._open[run_id].log(dict(values), step=step)

    def finals(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        """Record final figures, in the summary: a continued run takes no second row at the step of its last one."""
        self._open[run_id].summary.update(dict(values))

    def close(self, run_id: str, *, failure: str = "") -> None:
        """Close a run."""
        self._open.pop(run_id).finish(exit_code=int(bool(failure)))


class SwanlabRuns:
    """Runs of SwanLab; mode and login are those of its environment variables."""

    most_open = 1

    def __init__(self, folder: Path) -> None:
        import swanlab

        self._swanlab, self._folder = swanlab, folder

    def open(self, run: RunName) -> None:
        """Begin a run, or continue it."""
        probe = dict.fromkeys(("hardware", "runtime", "requirements", "git", "monitor"), False)
        settings = self._swanlab.Settings(interactive=False, probe=probe, terminal={"proxy_type": "none"})
        self._swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT), group=run.sweep, job_type="trial", name=run.trial,
            id=run.id, resume="allow", config=dict(run.settings), log_dir=str(self._folder), settings=settings,
        )  # fmt: skip

    def log(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        """Log values at a step."""
        self._swanlab.log(dict(values), step=step)

    def finals(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        """Record final figures at the last step."""
        self.log(run_id, values, step=step)

    def close(self, run_id: str, *, failure: str = "") -> None:
        """Close the run."""
        if failure:
            self._swanlab.finish(state="crashed", error=failure)
        else:
            self._swanlab.finish()


TRACKERS: dict[str, Callable[[Path], TrackerRuns]] = {"wandb": WandbRuns, "swanlab": SwanlabRuns}
