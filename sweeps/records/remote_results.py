"""Results of a sweep at a URI: restored before the sweep resumes, mirrored while it runs."""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.model_files.checkpoint import newest_checkpoint
from data_pipeline.files.own_files import clear, no_link
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.redaction import redact_url
from data_pipeline.schema.user_errors import InputFault, first_line
from sweeps.records.folder_mirror import Mirror
from sweeps.records.results_folder import LOCK_FILE
from sweeps.records.sweep_lock import SILENCE_S, holder_in, see_that_it_is_dead

PART_FILE = "part.json"
"""File in a sweep's folder that counts its runs; of two copies the one with the higher number is newer."""

_PULSE = "pulse.json"
"""File at the URI: a copy of the lock of the process that runs the sweep, some seconds old."""


class UriError(InputFault):
    """The URI for results cannot be used."""


def working_folder(uri: str) -> Path:
    """Local working folder of a sweep whose results are stored at a URI.

    Raises:
        UriError: The URI holds a password or a token.
    """
    if redact_url(uri) != uri:
        raise UriError(
            f"--results or PRETUNE_RESULTS: {redact_url(uri)} holds a user, a password or a token, which records and "
            "folder names would keep; remove them, and give them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or in a profile of the store (AWS_PROFILE)"
        )
    name = re.sub(r"[^A-Za-z0-9.]+", "-", uri.partition("://")[2]).strip("-.")
    return Path(os.path.expanduser("~")) / "pretune" / "mirrored" / (name or "results")


class ResultsAtUri:
    """The results folder of one sweep and its mirror. Only JSON, safetensors and Arrow files are read back."""

    def __init__(self, results_folder: Path, uri: str, *, say: Callable[[str], None]) -> None:
        """
        Raises:
            UriError: The store does not exist, or is not writable.
        """
        self.uri = uri.rstrip("/")
        self._say = say
        self._folder = results_folder.absolute()
        try:
            self._mirror = Mirror(self._folder, self.uri)
            self._mirror.write(".probe", b"")
        except (OSError, ValueError) as error:
            raise UriError(
                f"cannot write results to {self.uri} ({first_line(error)}). Set credentials, region "
                "and AWS_ENDPOINT_URL in the environment; the bucket must exist."
            ) from error

    def fetch_prepared(self, folder: Path) -> None:
        """Download a corpus prepared on another node; the folder appears only when complete."""
        partial = folder.with_name(f".fetching-{folder.name}")
        if partial.is_symlink():
            clear(partial)
        if Mirror(partial, f"{self.uri}/prepared/{folder.name}").pull():
            # Opening the corpus verifies its content.
            partial.rename(folder)

    def bring_back(self, sweep_folder: Path, *, silence_s: float = SILENCE_S) -> None:
        """Replace the sweep's folder with the copy at the URI if that is newer, e.g. on a fresh node.

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
            clear(partial)
            num_files = Mirror(partial, mirror.uri, leave_out=(_PULSE,)).pull()
            if sweep_folder.exists():
                sweep_folder.rename(sweep_folder.with_name(f".superseded-{here}-{sweep_folder.name}"))
            partial.rename(sweep_folder)
            self._say(f"results  {num_files} files restored from {mirror.uri}")
        if not (self._folder / "memory").exists():
            self._mirror.below("memory").pull()

    @contextmanager
    def following(self, sweep_folder: Path, prepared: Path) -> Iterator[None]:
        """Mirror the sweep's folder during the block. Only the process that holds the sweep may enter it."""
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
        """URI to which workers on other nodes upload a trial's checkpoints."""
        return f"{self.uri}/{trial_folder.relative_to(self._folder).as_posix()}"

    def fetch_checkpoint(self, trial_folder: Path) -> None:
        """Download a trial's weights if another node wrote them."""
        if newest_checkpoint(trial_folder) is None:
            Mirror(trial_folder, self.trial_uri(trial_folder), leave_out=("trial.json", "reports.jsonl")).pull()

    def drop_checkpoints(self, trial_folder: Path) -> None:
        """Delete a trial's weights at the URI, including uploads from other nodes."""
        for pattern in ("step-*", "best-*"):
            try:
                self._mirror.remove(trial_folder.relative_to(self._folder).as_posix(), pattern)
            except OSError:
                return  # Harmless: the files only take up space.


@contextmanager
def mirrored_trial(folder: Path, uri: str | None) -> Iterator[None]:
    """Mirror a trial's checkpoints from and to the URI during the block, for a worker on another node than the driver.

    Does nothing without a URI.
    """
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
    try:
        with open(path, "rb", opener=no_link) as file:
            return file.read()
    except FileNotFoundError:
        return None
