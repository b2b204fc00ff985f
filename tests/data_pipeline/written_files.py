"""Write a file, read it back the way preparation does, without Ray."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_formats import FileKind
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.pieces import pieces_of
from data_pipeline.reading.row_readers import read_piece
from data_pipeline.schema.corpus_config import CorpusConfig

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no ../shared/data (put the corpora there)")


@dataclass(frozen=True)
class WhatWasRead:
    """All rows of all files."""

    texts: list[str]
    rejects: list[tuple[int, str]]
    """(line, reason)"""
    num_blank_lines: int
    kinds: tuple[FileKind, ...]
    target_spans: list[list[tuple[int, int]]]


def read(*paths: Path, piece_bytes: int = 1 << 20, **settings: Any) -> WhatWasRead:
    """Read files as a corpus with these settings."""
    corpus = corpus_of(*paths, **settings)
    texts, rejects, spans, num_blank = [], [], [], 0
    for number, kind in enumerate(corpus.files):
        for piece in pieces_of(kind, corpus.config, file=number, piece_bytes=piece_bytes):
            rows = read_piece(piece, kind, corpus.config, corpus.template)
            texts += rows.texts
            rejects += [(reject.line, reject.reason.value) for reject in rows.rejects]
            spans += rows.target_spans or []
            num_blank += rows.num_blank_lines
    return WhatWasRead(texts, rejects, num_blank, corpus.files, spans)


def corpus_of(*paths: Path, **settings: Any) -> Corpus:
    """Files, examined."""
    config = CorpusConfig(path=tuple(map(str, paths)), **settings)
    return examine_files(find_files(config), config, memory=None)


def written(folder: Path, data: bytes | str, name: str = "corpus") -> Path:
    """A file with this content, under a name that says nothing."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def json_lines(*texts: str) -> str:
    """A JSONL file of rows {"text": ..}."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
