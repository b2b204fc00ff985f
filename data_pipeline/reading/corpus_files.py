"""Find the files of a corpus and open their bytes: local, remote, compressed or built in."""

import difflib
import errno
import io
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FileSystem

from data_pipeline.formats.archives import Member
from data_pipeline.reading.builtin_corpora import builtin_bytes
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.manifest import PassedOver
from data_pipeline.schema.redaction import MASK, redact
from data_pipeline.schema.settings import format_bytes

_BUILTIN = "builtin:"
_SHARE_OF_FREE_SPACE = 0.9

# Skipped in folders. A file that corpus.path names itself is always read.
_PASSED_OVER = (
    ("README*", "a README"),
    ("LICENSE*", "a licence"),
    ("LICENCE*", "a licence"),
    ("*~", "an editor's backup"),
    ("#*#", "an editor's backup"),
    ("*.bak", "a backup"),
    ("*.orig", "a backup"),
    ("*.sw[op]", "an editor's swap file"),
    ("*.tmp", "a temporary file"),
    ("*.part", "an unfinished download"),
    ("*.partial", "an unfinished download"),
    ("*.crdownload", "an unfinished download"),
    ("*.crc", "a checksum"),
    ("*.md5", "a checksum"),
    ("*.sha256", "a checksum"),
    ("SHA256SUMS*", "a checksum"),
    ("_SUCCESS", "a marker of another program"),
    ("Thumbs.db", "a marker of another program"),
)

_A_LINK = "a link that leaves the folder; corpus.follow_links: true reads it"


@dataclass(frozen=True)
class FoundFile:
    """A file to read."""

    path: str
    num_bytes: int
    changed: str
    """Version mark of the store (modification time, ETag), with which an unchanged file is not hashed again; may be
    empty."""
    is_named: bool = False
    """corpus.path names the file itself, not its folder."""
    inside: Member | None = None
    """The archive that holds the file; None for a file of its own."""


@dataclass(frozen=True)
class FoundFiles:
    """The files of a corpus in reading order, and the skipped files of its folders."""

    files: tuple[FoundFile, ...]
    passed_over: tuple[PassedOver, ...]


def find_files(corpus: CorpusConfig) -> FoundFiles:
    """All files of a corpus, sorted by path: the order in corpus.path does not matter.

    Raises:
        CorpusError: A path does not exist, its store cannot be opened, or no file is left to read.
    """
    if corpus.builtin is not None:
        size = len(builtin_bytes(corpus.builtin))
        return FoundFiles((FoundFile(_BUILTIN + corpus.builtin, size, f"Python {platform.python_version()}"),), ())
    named = (corpus.path,) if isinstance(corpus.path, str) else corpus.path or ()
    files: dict[str, FoundFile] = {}
    passed_over: dict[str, PassedOver] = {}
    for path in named:
        if "://" in path and (f"={MASK}" in path or f"{MASK}@" in path):
            raise CorpusError(
                f"corpus.path={path} comes from a record, which keeps no password or token; give the whole URL, for "
                "example with --set corpus.path=URL"
            )
        for found in _expand(path, follow_links=corpus.follow_links):
            if isinstance(found, FoundFile):
                files[found.path] = found
            else:
                passed_over[found.path] = found
    if not files:
        skipped = ", ".join(f"{Path(item.path).name} ({item.why})" for item in passed_over.values())
        raise CorpusError(
            f"corpus.path={', '.join(named)}: there is nothing to read in it"
            + (f"; passed over: {skipped}" if skipped else "")
            + "; name a file that holds text"
        )
    return FoundFiles(
        tuple(files[path] for path in sorted(files)),
        tuple(passed_over[path] for path in sorted(passed_over) if path not in files),
    )


@contextmanager
def open_bytes(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file as stored, without decompression.

    Raises:
        OSError: The file cannot be opened.
    """
    if path.startswith(_BUILTIN):
        yield io.BytesIO(builtin_bytes(path.removeprefix(_BUILTIN)))
        return
    filesystem, inner = _filesystem(path)
    try:
        with filesystem.open(inner, "rb") as stream:
            yield stream
    except Exception as cause:
        # Clients of HTTP quote the whole URL. Ray would carry such an error into logs of its own.
        if redact(str(cause)) == str(cause):
            raise
        raise OSError(redact(str(cause))) from None


def check_room_unpacked(path: str, num_plain_bytes: int) -> None:
    """Check that the temporary folder has room for an unpacked file.

    Raises:
        CorpusError: It has none.
    """
    folder = tempfile.gettempdir()
    num_free_bytes = shutil.disk_usage(folder).free
    if num_plain_bytes > _SHARE_OF_FREE_SPACE * num_free_bytes:
        raise CorpusError(
            f"{path} is compressed and needs {format_bytes(num_plain_bytes)} unpacked in {folder}, which "
            f"has {format_bytes(num_free_bytes)} free; unpack the file, or set TMPDIR to a folder with more space"
        )


def _expand(path: str, *, follow_links: bool) -> Iterator[FoundFile | PassedOver]:
    filesystem, inner = _filesystem(path)
    try:
        if filesystem.isdir(inner):
            folder, top = _snapshot_of_hub(inner)
            yield from _files_below(filesystem, folder, top, set() if follow_links else None)
            return
        if filesystem.exists(inner):
            why = _why_no_file(inner) if _is_local(filesystem) else None
            if why is not None:
                raise CorpusError(
                    f"corpus.path={path} is {why}, and a corpus is read more than once; write its data to a file first"
                )
            yield replace(_found(filesystem, inner, filesystem.info(inner)), is_named=True)
            return
        matches = sorted(filesystem.glob(inner, detail=True).items()) if any(mark in inner for mark in "*?[") else []
    except CorpusError:
        raise
    except Exception as cause:  # Each store has errors of its own.
        raise CorpusError(f"corpus.path={path} cannot be read: {cause}; check its permissions and its store") from cause
    if not matches:
        raise CorpusError(f"corpus.path={path} does not exist{_nearest(filesystem, inner)}")
    for name, info in matches:
        if info["type"] == "directory" and not info.get("islink"):
            continue
        why = _why_no_file(name) if _is_local(filesystem) and not os.path.isdir(name) else None
        if why is None and info.get("islink") and not (follow_links and filesystem.isfile(name)):
            why = "a link to a folder" if follow_links else _A_LINK
        # A pattern such as README*.txt names these files on purpose.
        is_asked_for = why_passed_over(inner.rsplit("/", 1)[-1], 1) is not None
        if why is None and not is_asked_for:
            why = why_passed_over(name.rsplit("/", 1)[-1], int(info["size"] or 0))
        yield PassedOver(path=_full(filesystem, name), why=why) if why else _found(filesystem, name, info)


def _files_below(filesystem: Any, folder: str, top: str, seen: set[str] | None) -> Iterator[FoundFile | PassedOver]:
    """Files of a folder.

    Args:
        top: The folder of the corpus, from whose name on hidden files are passed over.
        seen: Real paths of the folders that links led to. None: links that leave `top` are not followed.
    """
    found = sorted(filesystem.find(folder, detail=True).items())
    saved = {name.rsplit("/", 1)[0] for name, _ in found if name.endswith(".arrow")}
    for name, info in found:
        why = why_passed_over(name[len(top) :].strip("/"), int(info["size"] or 0)) or _why_record(name, saved)
        if why in (None, "empty") and _is_local(filesystem) and not os.path.isdir(name):
            # A pipe has no size either.
            why = _why_no_file(name) or why
        if why is None and info.get("islink"):
            target = os.path.realpath(name)
            if not _is_inside(target, top) and seen is None:
                why = _A_LINK
            elif os.path.isdir(target):
                # The folders that hold the link are read already, and those inside are read under their own names.
                if seen is not None and target not in seen and not (_is_inside(target, top) or _is_inside(top, target)):
                    seen.add(target)
                    yield from _files_below(filesystem, name, top, seen)
                    continue
                why = "a link to a folder that is read itself"
        yield PassedOver(path=_full(filesystem, name), why=why) if why else _found(filesystem, name, info)


def _is_local(filesystem: Any) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def _why_no_file(name: str) -> str | None:
    """Reason why a local path holds no bytes of its own; None for a file."""
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as cause:
        return "a link in a circle" if cause.errno == errno.ELOOP else None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "a pipe, a socket or a device"


def _why_record(name: str, saved: set[str]) -> str | None:
    """Reason for passing over a file of a saved Hugging Face data set that is no data.

    Args:
        saved: Folders with Arrow files.
    """
    folder, _, last = name.rpartition("/")
    if last in ("dataset_info.json", "state.json") and folder in saved:
        return "a record of a saved data set"
    if last == "dataset_dict.json" and any(other.startswith(f"{folder}/") for other in saved):
        return "a record of a saved data set"
    return "a cache of the datasets package" if fnmatch(last, "cache-*.arrow") else None


def _snapshot_of_hub(folder: str) -> tuple[str, str]:
    """(folder to read, folder whose links stay inside) of a folder, which may be of the cache of the Hugging Face Hub.

    There the files of a snapshot are links to blobs beside the snapshots.
    """
    path = Path(folder)
    if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
        with suppress(OSError):
            current = path / "snapshots" / (path / "refs/main").read_text().strip()
            if current.is_dir():
                return str(current), folder
        newest = max((one for one in (path / "snapshots").iterdir()), key=lambda one: one.stat().st_mtime, default=path)
        return str(newest), folder
    if path.parent.name == "snapshots" and (path.parent.parent / "blobs").is_dir():
        return folder, str(path.parent.parent)
    return folder, folder


def _is_inside(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _filesystem(path: str) -> tuple[Any, str]:
    if "://" not in path:
        # Not by its URL: a name may hold "::", which chains URLs.
        return LocalFileSystem(), str(Path(path).expanduser().absolute())
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        return filesystem, inner
    except (ImportError, ValueError):
        # pyarrow carries its own S3, GCS and HDFS clients; fsspec wants a package for each.
        try:
            arrow, inner = FileSystem.from_uri(path)
        except Exception as cause:
            remedy = (
                "pip install huggingface_hub" if path.startswith("hf://") else "check the scheme and the credentials"
            )
            raise CorpusError(f"corpus.path={path} names a store that cannot be opened: {cause}; {remedy}") from cause
        return ArrowFSWrapper(arrow), inner


def _full(filesystem: Any, name: str) -> str:
    protocol = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
    return name if protocol in ("file", "local") else str(filesystem.unstrip_protocol(name))


def _found(filesystem: Any, name: str, info: dict[str, Any]) -> FoundFile:
    changed = next((str(info[key]) for key in ("mtime", "ETag", "etag", "LastModified") if info.get(key)), "")
    return FoundFile(_full(filesystem, name), int(info["size"] or 0), changed)


def why_passed_over(relative: str, num_bytes: int) -> str | None:
    """Reason for passing over a file of a folder; None if it is read.

    Args:
        relative: Its path below the folder.
    """
    parts = relative.split("/")
    if any(part.startswith(".") and part not in (".", "..") for part in parts):
        return "hidden"
    for pattern, why in _PASSED_OVER:
        if fnmatch(parts[-1], pattern):
            return why
    return "empty" if num_bytes == 0 else None


def _nearest(filesystem: Any, inner: str) -> str:
    """Suggestion of existing names that resemble a missing path: most missing paths are misspelt."""
    try:
        beside = [
            entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(inner.rsplit("/", 1)[0], detail=False)
        ]
    except Exception:  # Each store has errors of its own.
        return "; its folder does not exist either"
    close = difflib.get_close_matches(inner.rsplit("/", 1)[-1], beside, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
