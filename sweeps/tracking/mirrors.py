"""Mirrors of MLflow's runs in other trackers, each in a process of its own that cannot touch a trial."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.files.own_files import fresh, make_folder
from data_pipeline.schema.user_errors import InputFault, first_line
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord

_PATIENCE_S = 180.0
"""Seconds that the end of a sweep waits for a mirror."""
_PACKAGES = ("wandb", "swanlab")
"""Trackers that need a package of the same name; TensorBoard's events are always written."""


class MirrorError(InputFault):
    """A mirror cannot be used."""


def check_mirrors(names: Sequence[str]) -> None:
    """Check that the packages of the mirrors are installed.

    Raises:
        MirrorError: Packages are missing; the message has the command that installs them.
    """
    missing = [name for name in names if name in _PACKAGES and not _is_installed(name)]
    if missing:
        command = shlex.join([sys.executable, "-m", "pip", "install", *missing])
        verb = "is" if len(missing) == 1 else "are"
        raise MirrorError(
            f"tracking.mirror: {' and '.join(missing)} {verb} not installed here. Install with: {command}; "
            "or take it out of the list."
        )


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    # Their output folders have the same names, and a folder without code counts as a package.
    return spec is not None and spec.origin is not None


class Mirrors:
    """The mirrors of one sweep. A failure is named once, and the missing trials are counted at the end."""

    def __init__(
        self, names: Sequence[str], folder: Path, *, say: Callable[[str], None], patience_s: float = _PATIENCE_S
    ) -> None:
        """Start the processes.

        Args:
            names: As in `tracking.mirror`.
            folder: The sweep's.
            say: Called with a line about the first failure of each mirror, and about its end.
        """
        self._say, self._patience_s = say, patience_s
        self._processes = [_Process(name, folder, say=say) for name in names if name in _PACKAGES]

    def on_event(self, event: TrialEvent, record: TrialRecord, _report: Any) -> None:
        """A ledger listener. Never waits, never fails."""
        for process in self._processes:
            process.hint(record.number)

    def close(self) -> dict[str, int]:
        """Let the mirrors bring the rest and end; number of incomplete trials by mirror."""
        for process in self._processes:
            process.ask_to_end()
        give_up_at = time.monotonic() + self._patience_s
        return {process.name: process.end(give_up_at - time.monotonic()) for process in self._processes}


class _Process:
    def __init__(self, name: str, folder: Path, *, say: Callable[[str], None]) -> None:
        self.name, self._say = name, say
        self._missing: list[str] | None = None
        self._has_said = False
        self._process: subprocess.Popen[bytes] | None = None
        own = folder / "mirrors" / name
        self._log = own / "log.txt"
        try:
            for part in (own.parent, own):
                make_folder(part)
            with open(self._log, "wb", opener=fresh) as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "sweeps.tracking.mirror_process", name, str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    # Ctrl-C reaches the driver alone, which then asks for the end.
                    start_new_session=True,
                )
        except (OSError, InputFault) as error:
            self._fail(first_line(error))
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True, name=name)
        self._listener.start()

    def hint(self, number: int) -> None:
        """Name a trial that changed; a hint that is lost costs only time, since the end brings all."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(b"%d\n" % number)

    def ask_to_end(self) -> None:
        """End the news."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def end(self, timeout_s: float) -> int:
        """Wait for the end; number of incomplete trials, all of them unknown as one."""
        if self._process is None:
            return 1
        try:
            self._process.wait(timeout=max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._fail("it was not done some minutes after the end of the sweep")
        self._listener.join()
        if self._missing is None:
            self._fail(f"its process ended with {self._process.returncode}")
            return 1
        if self._missing:
            self._say(f"mirror   {self.name} lacks {len(self._missing)} trials, {self._missing[0]} first")
        return len(self._missing)

    def _listen(self, answers: Any) -> None:
        for line in answers:
            with suppress(ValueError):
                answer = json.loads(line)
                if "missing" in answer:
                    self._missing = answer["missing"]
                else:
                    self._fail(str(answer.get("failed")))

    def _fail(self, why: str) -> None:
        if not self._has_said:
            self._has_said = True
            self._say(f"mirror   {self.name}: {why}. Training continues, and MLflow has all; details: {self._log}")
