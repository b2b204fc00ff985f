"""Mirror of a local folder at a URI (`s3://bucket/prefix`): uploads changes as they happen, restores them later.

Object stores accept whole objects only, but a sweep appends, renames and locks. It therefore works in a local folder,
and the mirror follows some seconds behind. On another node, or after the loss of the folder, a sweep resumes from the
mirror.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pyarrow import NativeFile
from pyarrow.fs import FileSelector, FileSystem, FileType

from data_pipeline.files.own_files import PlantedFileError, fresh, no_link
from data_pipeline.schema.user_errors import first_line

PUSH_EVERY_S = 5.0
"""Maximum age of the mirror: a lost node loses at most this many seconds of records."""

_PIECE_BYTES = 8 << 20
_SMALL_BYTES = 4 << 20
"""Files up to this size are read before the upload starts, so that records never refer to weights not yet uploaded."""


class Mirror:
    """One local folder and its copy at a URI. Credentials and endpoint come from the environment."""

    def __init__(self, folder: Path, uri: str, *, leave_out: Iterable[str] = ()) -> None:
        """
        Args:
            leave_out: Name patterns of files or folders to exclude. Names that start with a dot are always excluded.

        Raises:
            OSError, ValueError: The URI is not that of a known store.
        """
        self.folder, self.uri = folder, uri.rstrip("/")
        self._leave_out = tuple(leave_out)
        self._store, self._root = FileSystem.from_uri(self.uri)
        self._sent: dict[str, tuple[int, int]] = {}
        self._links: set[str] = set()
        self._lock = threading.Lock()

    def below(self, name: str, *, leave_out: Iterable[str] = ()) -> "Mirror":
        """The mirror of a subfolder."""
        return Mirror(self.folder / name, f"{self.uri}/{name}", leave_out=leave_out)

    def read(self, name: str) -> bytes | None:
        """Content of a file at the URI; None if it does not exist."""
        try:
            with self._store.open_input_stream(f"{self._root}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Upload a file immediately."""
        with self._output(name) as stream:
            stream.write(content)

    def pull(self) -> int:
        """Download every file that is missing here or differs in size; returns the number of downloads."""
        fetched = 0
        for name, size in self._there().items():
            target = self.folder / name
            if target.exists() and target.stat().st_size == size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".fetching-{target.name}")
            with (
                self._store.open_input_stream(f"{self._root}/{name}") as stream,
                open(partial, "wb", opener=fresh) as file,
            ):
                while piece := stream.read(_PIECE_BYTES):
                    file.write(piece)
            partial.replace(target)
            fetched += 1
        return fetched

    def push(self) -> None:
        """Upload the changes since the last push, weights before the records that refer to them.

        Afterwards delete the uploaded files that no longer exist here. Links are never followed.

        Raises:
            OSError: The store does not answer, or refuses the request.
        """
        with self._lock:
            # Read small files first: if one changes meanwhile, its old state is uploaded, which matches the others.
            small = {name: (state, self._content(name)) for name, state in self._here() if state[1] <= _SMALL_BYTES}
            here = dict(self._here())
            for name, state in here.items():
                if name not in small and self._sent.get(name) != state:
                    self._send(name, state)
            for name, (state, content) in sorted(small.items(), key=lambda item: _speaks_of_others(item[0])):
                if content is not None and self._sent.get(name) != state:
                    self.write(name, content)
                    self._sent[name] = state
            for name in [name for name in self._sent if name not in here]:
                with suppress(FileNotFoundError):
                    self._store.delete_file(f"{self._root}/{name}")
                del self._sent[name]

    def remove(self, name: str, pattern: str) -> None:
        """Delete the matching subfolders of a folder at the URI."""
        listed = FileSelector(f"{self._root}/{name}", allow_not_found=True)
        for found in self._store.get_file_info(listed):
            if found.type is FileType.Directory and fnmatch(found.base_name, pattern):
                self._store.delete_dir(found.path)

    @contextmanager
    def following(
        self, *, say: Callable[[str], None], also: Callable[[], None] = lambda: None, every_s: float = PUSH_EVERY_S
    ) -> Iterator[None]:
        """Push repeatedly in the background, and once more at the end.

        Args:
            say: Called with a line if a push fails; the next push retries.
            also: Called with each push.
        """
        ends = threading.Event()
        is_away = False
        said = set[str]()

        def follow() -> None:
            nonlocal is_away
            while True:
                is_last = ends.wait(every_s)
                try:
                    self.push()
                    if new := sorted(self._links - said):
                        said.update(new)
                        say(f"{len(new)} links in {self.folder} are not followed and not uploaded: {', '.join(new)}")
                    also()
                except (OSError, PlantedFileError) as error:
                    if not is_away or is_last:
                        say(f"cannot upload results to {self.uri} ({first_line(error)}); they are in {self.folder}")
                    is_away = True
                else:
                    is_away = False
                if is_last:
                    return

        thread = threading.Thread(target=follow, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def _here(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Files to mirror: name below the folder, time of change and size."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if self._stays(name.parts):
                continue
            if path.is_symlink():
                # pretune makes none, and one from somebody else can point at any file of the user.
                self._links.add(name.as_posix())
            if path.is_symlink() or not path.is_file():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # A checkpoint was replaced meanwhile.
            yield name.as_posix(), (stat.st_mtime_ns, stat.st_size)

    def _there(self) -> dict[str, int]:
        found = self._store.get_file_info(FileSelector(self._root, recursive=True, allow_not_found=True))
        files = {one.path[len(self._root) :].lstrip("/"): one.size for one in found if one.type is FileType.File}
        return {name: size for name, size in files.items() if not self._stays(PurePosixPath(name).parts)}

    def _stays(self, parts: Iterable[str]) -> bool:
        return any(part.startswith(".") or any(fnmatch(part, one) for one in self._leave_out) for part in parts)

    def _content(self, name: str) -> bytes | None:
        try:
            with open(self.folder / name, "rb", opener=no_link) as file:
                return file.read()
        except (FileNotFoundError, PlantedFileError):
            return None

    def _send(self, name: str, state: tuple[int, int]) -> None:
        try:
            with open(self.folder / name, "rb", opener=no_link) as file, self._output(name) as stream:
                while piece := file.read(_PIECE_BYTES):
                    stream.write(piece)
        except (FileNotFoundError, PlantedFileError):
            return
        self._sent[name] = state

    def _output(self, name: str) -> NativeFile:
        path = f"{self._root}/{name}"
        if self._store.type_name != "s3":  # S3 needs no folders: they are parts of the names.
            self._store.create_dir(str(PurePosixPath(path).parent), recursive=True)
        return self._store.open_output_stream(path, compression=None)


def _speaks_of_others(name: str) -> tuple[bool, bool, str]:
    """Sort key: independent files first, then a trial's record, then the tables of the whole sweep."""
    path = PurePosixPath(name)
    return (len(path.parts) == 1, path.name == "trial.json", name)
