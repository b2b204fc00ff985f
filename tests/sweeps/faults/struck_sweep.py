"""A small sweep as a process of its own, the moments at which a fault strikes it, and the same command again."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from command import ROOT, listen_to_ctrl_c, processes_marked
from patience import COMMAND_HANGS_AFTER_S, wait_until
from sweeps.commands.command_frame import EXIT_PARTS_MISSING

CHECKPOINT_EVERY_S = 1
FILE = f"""\
name: faults
corpus: {{builtin: python-docs, holdout: 0.3%}}
tokenizer: {{kind: byte-bpe, vocabulary: 1000}}
model: {{family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}}
objective: {{masked_lm: {{masking_rate: 0.15}}}}
training: {{batch_size: 16, micro_batch_size: 16}}
search:
  training.learning_rate: {{choice: [1e-3, 3e-3, 1e-2]}}
searcher: {{method: grid}}
early_stopping: {{method: none}}
evaluation: {{points: 100}}
budget: {{trials: 3, tokens_per_trial: 20k}}
resources: {{concurrent_trials: 1, checkpoint_every_s: {CHECKPOINT_EVERY_S}}}
"""
"""Every step is evaluated and reported, so that records show each token trained again, and each weight that differs."""
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    # On a busy machine threads of torch would spin for their turn, and workers with a low priority would starve.
    "OMP_WAIT_POLICY": "passive",
    "RAY_worker_niceness": "0",
}
_UNSENT = "To send it later, run the same command: "
MOST_COMMANDS = 3
"""Most times that a command is given, the first included."""


@dataclass(frozen=True)
class Report:
    """One report of a trial, from its log."""

    step: int
    tokens: int
    second: int
    """Of the day, as the log says."""


@dataclass
class StruckSweep:
    """One results folder, the sweep in it, and the commands given so far."""

    results: Path
    environment: dict[str, str] = field(default_factory=dict)
    """Beside that of this process."""
    text: str = FILE
    codes: list[int] = field(default_factory=list)
    """Exit codes of the commands that have ended."""
    continued_by: str = "same command"
    """Way to the end after the fault, in words."""
    at_end: list[Callable[[], None]] = field(default_factory=list)
    """Called when the sweep has ended, the last one first."""

    def __post_init__(self) -> None:
        self.results.mkdir(parents=True, exist_ok=True)
        self.mark = f"faults-{time.time_ns()}"
        self.file = self.results / "faults.yaml"
        self.file.write_text(self.text)
        self.printed = self.results.parent / f"{self.results.name}-printed.txt"
        self._process: subprocess.Popen[bytes] | None = None

    # Folders and files

    @property
    def folder(self) -> Path:
        """The sweep's own folder."""
        (found,) = self.results.glob("faults-*/")
        return found

    def trial(self, number: int) -> Path:
        """Folder of a trial, whether it exists or not."""
        folders = list(self.results.glob("faults-*/"))
        return (folders[0] if folders else self.results / "faults") / "trials" / f"trial-{number:04d}"

    def parts(self, number: int) -> list[list[Report]]:
        """Reports of a trial, for each time that a worker started it."""
        log = self.trial(number) / "log.txt"
        starts = log.read_text(errors="replace").split("starts: ")[1:] if log.exists() else []
        return [_reports(part) for part in starts]

    # Commands

    def start(self) -> None:
        """Give the command."""
        with self.printed.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweeps", "sweep", str(self.file), "--results", str(self.results)],
                cwd=ROOT,
                env=os.environ | _ENVIRONMENT | {"PRETUNE_TEST_MARK": self.mark} | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=listen_to_ctrl_c,
            )

    def start_and_train(self, number: int = 2) -> None:
        """Give the command, and wait until this trial has trained beyond its first checkpoint."""
        self.start()
        self.wait_until_it_trains(number)

    def wait_until_it_trains(self, number: int = 2) -> None:
        self.wait(lambda: any(self.trial(number).glob("step-*")), f"no checkpoint of trial {number}")
        reports = len(self.parts(number)[-1])
        self.wait(lambda: len(self.parts(number)[-1]) > reports + 1, f"trial {number} stands still")

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a moment of the running command."""

        def ended_or_holds() -> bool:
            assert holds() or self.is_running, f"{what}; the command has ended:\n{self.output}"
            return holds()

        wait_until(ended_or_holds, lambda: f"{what}:\n{self.output}")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def driver(self) -> psutil.Process:
        """The process of the running command."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def process(self, name: str) -> psutil.Process:
        """The one process of the running command whose command line or name holds this."""
        ours = processes_marked(self.mark)
        found = [one for one in ours if one.name() == name] or [one for one in ours if name in _names(one)]
        assert len(found) == 1, f"{len(found)} processes named {name}: {[_names(one) for one in found]}"
        return found[0]

    def end(self) -> int:
        """Wait for the end of the running command; returns its exit code."""
        assert self._process is not None
        code = self._process.wait(timeout=COMMAND_HANGS_AFTER_S)
        self.codes.append(code)
        return code

    def kill(self) -> None:
        """kill -9 of the driver."""
        self.driver.send_signal(signal.SIGKILL)
        self.end()

    def end_or_again(self) -> None:
        """The running command ends, and is given again until it ends with 0."""
        while self.end():
            assert len(self.codes) < MOST_COMMANDS, f"exit codes {self.codes}:\n{self.output}"
            if self.codes[-1] == EXIT_PARTS_MISSING:
                assert _UNSENT in self.output
                self.continued_by = "same command, which sends what MLflow misses"
            self.start()

    @property
    def output(self) -> str:
        """Output of all commands so far."""
        return self.printed.read_text(errors="replace")

    def processes_left(self) -> list[str]:
        """Command lines of processes that the commands have left behind."""
        return [_names(one) for one in processes_marked(self.mark)]


def _names(process: psutil.Process) -> str:
    try:
        return " ".join((process.name(), *process.cmdline()))
    except psutil.NoSuchProcess:
        return ""


_REPORT = re.compile(r"T(\d\d):(\d\d):(\d\d)Z .*?\btokens=([0-9.e+]+) step=([0-9.e+]+) ")


def _reports(part: str) -> list[Report]:
    return [
        Report(int(float(step)), int(float(tokens)), 3600 * int(hours) + 60 * int(minutes) + int(seconds))
        for hours, minutes, seconds, tokens, step in _REPORT.findall(part)
    ]
