"""Detected file properties, cached: an unchanged file is neither hashed nor examined again."""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from data_pipeline.files.machine_faults import machine_fault
from data_pipeline.files.whole_files import write_whole
from data_pipeline.reading.archive_listing import members_of
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.corpus_files import FoundFile, FoundFiles
from data_pipeline.reading.file_formats import FileKind, examine_file
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.manifest import FORMAT_VERSION, PassedOver
from data_pipeline.schema.redaction import redact_url

_KIND = TypeAdapter(FileKind)
_EXAMINED = 2
"""Version of what is known of a file: raise it when files are examined in another way."""
_READING = {
    *("text", "format", "encoding", "documents", "longest_row", "expands_to"),
    *("delimiter", "quote", "escape", "header"),
}
# Two writes within the resolution of the file system's clock look like one; a file this old is no longer written to.
_SETTLED_S = 2.0


def examine_files(
    found: FoundFiles, config: CorpusConfig, *, memory: Path | None, on_bytes: Callable[[int], None] = lambda _: None
) -> Corpus:
    """The corpus of these files, with the properties of each.

    Args:
        memory: Cache file; None disables the cache.
        on_bytes: Called with the size of each file after it is examined.

    Raises:
        CorpusError: A file cannot be read.
    """
    known = _recall(memory)
    kinds = _kinds_of(found.files, config, known, on_bytes)
    members: dict[str, FoundFile] = {}
    passed_over = list(found.passed_over)
    for archive in [kind for kind in kinds.values() if kind.archive is not None]:
        for member in members_of(archive):
            if isinstance(member, FoundFile):
                members[member.path] = member
            elif isinstance(member, PassedOver):
                passed_over.append(member)
            else:
                kinds[member.path] = member
    kinds |= _kinds_of(tuple(members.values()), config, known, lambda _: None)
    if memory is not None:
        settled = filter(_is_settled, (*found.files, *members.values()))
        examined = {_key(file, config): kinds[file.path] for file in settled}
        if not examined.keys() <= known.keys():
            _remember(memory, examined | known)
    named = {file.path for file in found.files if file.is_named}
    files = []
    for path in sorted(kinds):
        kind = kinds[path]
        if kind.holds_no_text and path not in named:
            passed_over.append(PassedOver(path=path, why=str(kind.refused).partition(";")[0].removeprefix("it is ")))
        elif kind.archive is None:
            files.append(kind)
    whole = with_borrowed_headers(tuple(files), config)
    if not whole:
        skipped = ", ".join(f"{os.path.basename(one.path)} ({one.why})" for one in passed_over)
        raise CorpusError(
            f"there is nothing to read in the corpus; passed over: {skipped}; name a file that holds text"
        )
    return Corpus(config, whole, passed_over=tuple(sorted(passed_over, key=lambda one: one.path)))


def _kinds_of(
    files: Sequence[FoundFile], config: CorpusConfig, known: dict[str, FileKind], on_bytes: Callable[[int], None]
) -> dict[str, FileKind]:
    """Properties of files by path, from memory where they are known."""
    kinds: dict[str, FileKind] = {}
    unknown = []
    for file in files:
        entry = known.get(_key(file, config))
        if entry is not None:
            # The cache has the path without the signature of its URL.
            kinds[file.path] = replace(entry, path=file.path, inside=file.inside)
            on_bytes(file.num_bytes)
        else:
            unknown.append(file)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        pending = {pool.submit(examine_file, file, config): file for file in unknown}
        for done in as_completed(pending):
            file = pending[done]
            try:
                kinds[file.path] = done.result()
            except OSError as cause:
                if machine_fault(cause) is not None:
                    raise
                raise CorpusError(
                    f"{file.path} cannot be read: {cause}; check its permissions, or exclude it from corpus.path"
                ) from cause
            on_bytes(file.num_bytes)
    return kinds


def are_examined(found: FoundFiles, config: CorpusConfig, *, memory: Path) -> bool:
    """Whether the cache file knows all files of a corpus as they are now."""
    return {_key(file, config) for file in found.files} <= _recall(memory).keys()


def with_borrowed_headers(files: tuple[FileKind, ...], config: CorpusConfig) -> tuple[FileKind, ...]:
    """Give tables without a header the header of a file with as many columns.

    In a table split into several files, only the first has a header.
    """
    if config.header == "none":
        return files
    headers = {
        (file.delimiter, len(file.columns)): file
        for file in reversed(files)
        if file.format == "csv" and file.has_header and file.refused is None
    }
    whole = []
    for file in files:
        if file.format == "csv" and not file.has_header:
            lender = headers.get((file.delimiter, len(file.columns)))
            if lender is not None:
                file = replace(file, columns=lender.columns, text_column=lender.text_column, refused=None)
            else:
                file = replace(
                    file,
                    refused=f"it has no header to say which of its {len(file.columns)} columns is the text; add a "
                    "header, set corpus.header: none and the number of the column as corpus.text, or set "
                    "corpus.format: txt if it is not a table",
                )
        whole.append(file)
    return tuple(whole)


def _key(file: FoundFile, config: CorpusConfig) -> str:
    settings = config.model_dump(include=_READING)
    return json.dumps([FORMAT_VERSION, _EXAMINED, redact_url(file.path), file.num_bytes, file.changed, settings])


def _is_settled(file: FoundFile) -> bool:
    if not file.changed:
        return False
    try:
        return time.time() - float(file.changed) > _SETTLED_S
    except ValueError:
        return True  # An ETag changes with the content.


def _recall(memory: Path | None) -> dict[str, FileKind]:
    if memory is None:
        return {}
    with suppress(OSError, ValueError):
        return {key: _KIND.validate_python(value) for key, value in json.loads(memory.read_text()).items()}
    return {}


def _remember(memory: Path, kinds: dict[str, FileKind]) -> None:
    shown = {key: replace(kind, path=redact_url(kind.path)) for key, kind in kinds.items()}
    data = {key: _KIND.dump_python(kind, mode="json") for key, kind in shown.items()}
    write_whole(memory, json.dumps(data).encode())
