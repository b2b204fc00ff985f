"""Prepare a corpus: its token blocks are made once per fingerprint and then reused."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from filelock import Timeout

from data_pipeline.files.own_files import fresh_folder, make_folder, own_lock
from data_pipeline.files.whole_files import write_whole
from data_pipeline.preparation.fingerprint import library_versions, row_fingerprint, stream_fingerprint
from data_pipeline.preparation.token_stream import make_stream
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_inspection import are_examined, examine_files
from data_pipeline.reading.parcel_tasks import RunParcels, for_each_parcel
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError, PackingConfig, TokenizerConfig
from data_pipeline.schema.manifest import FORMAT_VERSION, Manifest, PassedOver, StreamReport
from data_pipeline.schema.prepare_progress import OnProgress, PhaseCounter, PrepareProgress
from data_pipeline.schema.rejects import check_files, check_rejects
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.chat_template import template_beside
from data_pipeline.tokens.row_tables import make_rows
from data_pipeline.tokens.token_blocks import PreparedCorpus, open_prepared
from data_pipeline.tokens.tokenizer import load_tokenizer, vocabulary_of

__all__ = ["CorpusError", "PrepareProgress", "prepare"]

_EXAMINED = ".examined.json"
"""File that remembers the files of corpora, with their hashes."""
_WAIT_S = 0.2
_CUTS = 2
"""Version of the places at which files are cut into parcels. Work of another version cannot be resumed: rows would be
lost or doubled."""


def prepare(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    packing: PackingConfig,
    *,
    prepared_folder: Path,
    on_progress: OnProgress | None = None,
    run: RunParcels = for_each_parcel,
    fetch: Callable[[Path], None] = lambda _: None,
    wanted: Literal["texts", "conversations"] | None = None,
) -> PreparedCorpus:
    """The prepared corpus in prepared_folder/<fingerprint>; makes it if it does not exist.

    The folder appears complete or not at all. An interrupted preparation resumes. Concurrent preparations of one
    corpus make it once. Making it with `for_each_parcel` needs an initialised Ray.

    Args:
        prepared_folder: Parent folder of all prepared corpora.
        on_progress: Called with the progress of each phase.
        run: Runs the work on parcels; `for_each_parcel_here` uses one core and no Ray.
        fetch: Called with the folder before it is made; may copy it, complete, from elsewhere.
        wanted: Kind of data that the objective needs; the other kind is refused. None accepts both.

    Raises:
        CorpusError: Nothing to read, no row kept, more rejected than `max_rejected`, or data of the wrong kind.
        ValueError: The tokenizer cannot be loaded.
    """
    report = on_progress or (lambda _: None)
    prepared_folder = prepared_folder.expanduser().absolute()
    try:
        make_folder(prepared_folder)
    except OSError as cause:
        raise CorpusError(
            f"the folder for prepared corpora, {prepared_folder}, cannot be created: {cause}; choose a writable path"
        ) from cause
    found = find_files(corpus)
    counter = PhaseCounter(report, "reading files", total=sum(file.num_bytes for file in found.files), unit="bytes")
    files = _with_template(
        examine_files(found, corpus, memory=prepared_folder / _EXAMINED, on_bytes=counter.add), tokenizer
    )
    check_kind(files, wanted)
    stream = stream_fingerprint(files, tokenizer)
    folder = prepared_folder / row_fingerprint(stream, packing)
    if not folder.is_dir():
        with _only_one(prepared_folder / f".lock-{stream}", report):
            if not folder.is_dir():
                fetch(folder)
            if not folder.is_dir():
                _make(files, tokenizer, packing, folder, stream, files.passed_over, report, run)
    prepared = open_prepared(folder)
    check_files(prepared.manifest.files, corpus)
    check_rejects(prepared.manifest.rejects, prepared.manifest.rows_read, corpus)
    return prepared


def folder_if_prepared(
    corpus: CorpusConfig, tokenizer: TokenizerConfig, packing: PackingConfig, *, prepared_folder: Path
) -> Path | None:
    """The folder of the prepared corpus; None unless it is known without reading files of the corpus.

    Raises:
        CorpusError, ValueError: As `prepare`.
    """
    memory, found = prepared_folder / _EXAMINED, find_files(corpus)
    if not are_examined(found, corpus, memory=memory):
        return None
    files = _with_template(examine_files(found, corpus, memory=memory), tokenizer)
    folder = prepared_folder / row_fingerprint(stream_fingerprint(files, tokenizer), packing)
    return folder if folder.is_dir() else None


def _with_template(files: Corpus, tokenizer: TokenizerConfig) -> Corpus:
    if tokenizer.path is None:
        return files
    path = Path(tokenizer.path).expanduser()
    return replace(files, template=template_beside(path, load_tokenizer(path)))


def check_kind(corpus: Corpus, wanted: Literal["texts", "conversations"] | None) -> None:
    """Check that a corpus holds the kind of data that the objective needs.

    Raises:
        CorpusError: It holds the other kind, or both kinds; the message names a file.
    """
    read = [file for file in corpus.files if file.refused is None]
    dialogues = [file.path for file in read if file.has_dialogues]
    texts = [file.path for file in read if not file.has_dialogues]
    if wanted == "texts" and dialogues:
        raise CorpusError(
            f"{dialogues[0]} holds conversations, but this objective trains on texts; set objective: sft, which "
            "predicts the assistant's tokens, or name the key of the text as corpus.text"
        )
    if wanted == "conversations" and texts:
        raise CorpusError(
            f'{texts[0]} holds texts, but objective: sft trains on conversations, rows {{"conversations": [{{"role": '
            '"user", "content": ..}, ..]} or {"instruction": .., "output": ..}; set objective: causal_lm for texts'
        )
    if texts and dialogues:
        raise CorpusError(
            f"{dialogues[0]} holds conversations, {texts[0]} holds texts: conversations train on answers only, texts "
            "on every token; name files of one kind as corpus.path"
        )


def _make(
    corpus: Corpus,
    tokenizer: TokenizerConfig,
    packing: PackingConfig,
    folder: Path,
    stream: str,
    passed_over: tuple[PassedOver, ...],
    report: OnProgress,
    run: RunParcels,
) -> None:
    """Make the folder under a temporary name, then rename it."""
    work = folder.parent / f".work-{_CUTS}-{stream}"
    pointer = folder.parent / f".stream-{stream}"
    made_before = _prepared_with_other_rows(pointer)
    source = made_before.folder if made_before else work
    documents = (
        StreamReport.model_validate(made_before.manifest.model_dump(include=set(StreamReport.model_fields)))
        if made_before
        else _stream(corpus, tokenizer, work, report, run)
    )
    partial = fresh_folder(folder.parent / f".new-{folder.name}")
    blocks = [block.name for split in documents.splits.values() for block in split.blocks]
    for name in (*blocks, "tokenizer.json", "rejects.jsonl"):
        _link(source / name, partial / name)
    manifest = Manifest(
        **documents.model_dump(),
        format_version=FORMAT_VERSION,
        fingerprint=folder.name,
        stream_fingerprint=stream,
        corpus=corpus.config,
        tokenizer=tokenizer,
        packing=packing,
        versions=library_versions(),
        passed_over=passed_over,
        rows=make_rows(partial, documents.splits, packing, begin_id=_begin_id(partial)),
    )
    write_whole(partial / "manifest.json", manifest.model_dump_json(indent=1).encode())
    partial.rename(folder)
    write_whole(pointer, folder.name.encode())
    shutil.rmtree(work, ignore_errors=True)


def _begin_id(folder: Path) -> int:
    return vocabulary_of(load_tokenizer(folder / "tokenizer.json")).bos_id


def _stream(
    corpus: Corpus, tokenizer: TokenizerConfig, work: Path, report: OnProgress, run: RunParcels
) -> StreamReport:
    try:
        return make_stream(corpus, tokenizer, work=work, report=report, run=run)
    except InputFault:
        # The corpus must change first, so nothing can resume from this work.
        shutil.rmtree(work, ignore_errors=True)
        raise


def _prepared_with_other_rows(pointer: Path) -> PreparedCorpus | None:
    """A prepared folder with the same tokens and other rows, whose blocks can be reused; None if there is none."""
    with suppress(OSError, ValueError):
        return open_prepared(pointer.parent / pointer.read_text())
    return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _only_one(path: Path, report: OnProgress) -> Iterator[None]:
    """Hold an exclusive file lock; the kernel releases it when the process ends for any reason."""
    lock, started_at = own_lock(path), time.monotonic()
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_WAIT_S)
        except Timeout:
            waited_s = int(time.monotonic() - started_at)
            report(PrepareProgress("waiting for another preparation", waited_s, None, "s"))
    try:
        yield
    finally:
        lock.release()
