"""A sweep whose results are kept at a URI: brought back before it resumes, and mirrored while it runs."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.model_files.checkpoint import newest_checkpoint
from data_pipeline.schema.user_errors import InputFault, first_line
from data_pipeline.schema.whole_files import write_atomically
from sweeps.records.folder_mirror import Mirror
from sweeps.records.results_folder import LOCK_FILE
from sweeps.records.sweep_lock import SILENCE_S, holder_in, see_that_it_is_dead

PART_FILE = "part.json"
"""In a sweep's folder: the how many-th part of the sweep this is; the copy with the higher number is the newer one."""

_PULSE = "pulse.json"
"""At the URI: the lock of the process that runs the sweep, as it stood some seconds ago."""


class UriError(InputFault):
    """The URI for results cannot be used."""


def working_folder(uri: str) -> Path:
    """Where a sweep works on this machine whose results are kept at a URI."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", uri.partition("://")[2]).strip("-.")
    return Path.home() / "pretune" / "mirrored" / (name or "results")


class ResultsAtUri:
    """The results folder of one sweep and its mirror. Nothing is read back but JSON, safetensors and Arrow."""

    def __init__(self, results_folder: Path, uri: str, *, say: Callable[[str], None]) -> None:
        """
        Raises:
            UriError: There is no such store, or it does not let us write.
        """
        self.uri = uri.rstrip("/")
        self._say = say
        self._folder = results_folder.absolute()
        try:
            self._mirror = Mirror(self._folder, self.uri)
            self._mirror.write(".probe", b"")
        except (OSError, ValueError) as error:
            raise UriError(
                f"the results cannot be kept at {self.uri} ({first_line(error)}). Credentials, region "
                "and AWS_ENDPOINT_URL come from the environment; the bucket must be there."
            ) from error

    def fetch_prepared(self, folder: Path) -> None:
        """Token blocks that another node has made; whole, or not at all."""
        partial = folder.with_name(f".fetching-{folder.name}")
        if Mirror(partial, f"{self.uri}/prepared/{folder.name}").pull():
            # Contents are verified by opening.
            partial.rename(folder)

    def bring_back(self, sweep_folder: Path, *, silence_s: float = SILENCE_S) -> None:
        """Replace the sweep's folder by the copy at the URI if that is newer, as on a fresh node.

        Raises:
            SweepRunsAlreadyError: A process on another host runs the sweep.
        """
        mirror = self._mirror.below(sweep_folder.name)
        holder = holder_in(mirror.read(_PULSE))
        if holder is not None and holder.host != socket.gethostname():
            see_that_it_is_dead(holder, lambda: holder_in(mirror.read(_PULSE)), say=self._say, silence_s=silence_s)
        here, there = _part(_read(sweep_folder / PART_FILE)), _part(mirror.read(PART_FILE))
        if there > here:
            partial = sweep_folder.with_name(f".fetching-{sweep_folder.name}")
            shutil.rmtree(partial, ignore_errors=True)
            num_files = Mirror(partial, mirror.uri, leave_out=(_PULSE,)).pull()
            if sweep_folder.exists():
                sweep_folder.rename(sweep_folder.with_name(f".superseded-{here}-{sweep_folder.name}"))
            partial.rename(sweep_folder)
            self._say(f"results  {num_files} files brought back from {mirror.uri}")
        if not (self._folder / "memory").exists():
            self._mirror.below("memory").pull()

    @contextmanager
    def following(self, sweep_folder: Path, prepared: Path) -> Iterator[None]:
        """Mirror what the sweep leaves behind while it runs; to be entered by the process that holds the sweep."""
        mirror = self._mirror.below(sweep_folder.name)
        part = 1 + max(_part(_read(sweep_folder / PART_FILE)), _part(mirror.read(PART_FILE)))
        write_atomically(sweep_folder / PART_FILE, json.dumps({"part": part}) + "\n")
        others = [self._mirror.below("memory"), self._mirror.below(f"prepared/{prepared.name}")]

        def also() -> None:
            mirror.write(_PULSE, _read(sweep_folder / LOCK_FILE) or b"")
            for other in others:
                other.push()

        also()
        with mirror.following(say=self._say, also=also):
            yield
        mirror.write(_PULSE, b"")

    def trial_uri(self, trial_folder: Path) -> str:
        """Where workers on other nodes keep a trial's checkpoints."""
        return f"{self.uri}/{trial_folder.relative_to(self._folder).as_posix()}"

    def fetch_checkpoint(self, trial_folder: Path) -> None:
        """Bring a trial's weights here, if another node has written them."""
        if newest_checkpoint(trial_folder) is None:
            Mirror(trial_folder, self.trial_uri(trial_folder), leave_out=("trial.json", "reports.jsonl")).pull()

    def drop_checkpoints(self, trial_folder: Path) -> None:
        """Remove a trial's weights there, also those that another node has sent."""
        for pattern in ("step-*", "best-*"):
            try:
                self._mirror.remove(trial_folder.relative_to(self._folder).as_posix(), pattern)
            except OSError:
                return  # It costs room there, and nothing else.


@contextmanager
def mirrored_trial(folder: Path, uri: str | None) -> Iterator[None]:
    """On a worker whose node is not the driver's: checkpoints of a trial from and to the URI while it trains."""
    if uri is None:
        yield
        return
    mirror = Mirror(folder, uri, leave_out=("trial.json", "reports.jsonl", "events.*"))
    mirror.pull()
    with mirror.following(say=lambda _: None):
        yield


def _part(content: bytes | None) -> int:
    return int(json.loads(content)["part"]) if content else 0


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
