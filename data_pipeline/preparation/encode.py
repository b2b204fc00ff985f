"""Encode texts into token blocks, parcel by parcel."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.files.whole_files import write_whole
from data_pipeline.preparation.survey import ParcelRows, hash_texts, is_below, read_parcel
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.pieces import Piece
from data_pipeline.tokens.arrow_files import arrow_bytes
from data_pipeline.tokens.tokenizer import Vocabulary, panics_explained, vocabulary_of

_CHARACTERS_AT_ONCE = 1 << 16
"""The encodings of this many characters fit in a core's cache: an eighth faster than eight times as many."""


@dataclass(frozen=True)
class EncodeWork:
    """Reads, splits, encodes and writes one parcel. It pickles small; each process loads the tokenizer once."""

    corpus: Corpus
    tokenizer_json: str
    holdout_threshold: int
    has_targets: bool
    folder: Path | None
    """Folder for the blocks. None returns them to the caller: the tasks do not share its disk."""
    dropped: dict[str, NDArray[np.int32]]
    """Indices of repeated texts to leave out, by parcel."""
    judges: bool = False
    """True: also count rows and write rejects, because no survey read the corpus before."""

    def __call__(self, name: str, pieces: list[Piece]) -> dict[str, Any]:
        done = self.folder / f"{name}{'.judged' if self.judges else ''}.json" if self.folder is not None else None
        if done is not None and done.is_file():
            # An interrupted preparation wrote this parcel; only its counts are needed.
            earlier: dict[str, Any] = json.loads(done.read_text())
            return earlier
        started_at = time.time()
        rows = read_parcel(pieces, self.corpus)
        texts, spans = self._less_dropped(name, rows)
        hashes, text_bytes = hash_texts(texts)
        is_held_out = is_below(hashes[:, 0], self.holdout_threshold)
        result: dict[str, Any] = {"num_bytes": sum(len(piece.data) for piece in pieces)}
        blobs: dict[str, bytes] = {}
        if self.judges:
            result["survey"] = rows.counts(hashes, text_bytes, self.corpus)
            blobs[f"{name}.hashes"] = hashes.tobytes()
            if rows.rejects:
                blobs[f"{name}.rejects"] = rows.reject_lines()
        for split, chosen in (("train", ~is_held_out), ("holdout", is_held_out)):
            indices = np.flatnonzero(chosen).tolist()
            batch, facts = encode_documents(
                [texts[index] for index in indices],
                text_bytes[chosen],
                [spans[index] for index in indices] if self.has_targets else None,
                *_tokenizer(self.tokenizer_json),
            )
            result[split] = facts | {"content_hash": str(int(hashes[chosen].sum(dtype=np.uint64)))}
            if batch.num_rows:
                blobs[f"{split}-{name}.arrow"] = arrow_bytes(batch)
        result |= {"started_at": started_at, "stopped_at": time.time()}
        if self.folder is None or done is None:
            return result | {"blobs": blobs}
        for file_name, data in blobs.items():
            write_whole(self.folder / file_name, data)
        write_whole(done, json.dumps(result).encode())
        return result

    def _less_dropped(self, name: str, rows: ParcelRows) -> tuple[list[str], list[list[tuple[int, int]]]]:
        if name not in self.dropped:
            return rows.texts, rows.target_spans
        dropped = set(self.dropped[name].tolist())
        kept = [index for index in range(len(rows.texts)) if index not in dropped]
        return [rows.texts[index] for index in kept], [rows.target_spans[index] for index in kept]


def encode_documents(
    texts: list[str],
    text_bytes: NDArray[np.int64],
    target_spans: list[list[tuple[int, int]]] | None,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """A block with one record per text, `<s> .. </s>` each, and its counts.

    A text that already begins or ends with that token (as in MiniMind's corpora) does not get it twice.

    Args:
        text_bytes: UTF-8 bytes of each text.
        target_spans: Conversations: (start, stop) of the predicted characters of each text. A token is predicted if it
            begins inside a span, and the text gets no further special tokens. None: every token is predicted.
    """
    dtype = token_dtype(vocabulary.size)
    pieces: list[NDArray[Any]] = []
    lengths: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.uint8]] = []
    for start, stop in _portions(texts):
        ids, is_target = _encode(texts[start:stop], target_spans[start:stop] if target_spans else None, tokenizer)
        # A chat template already writes the special tokens.
        framed = frame(ids, vocabulary, dtype) if is_target is None else as_written(ids, dtype, is_target)
        pieces.append(framed.tokens)
        lengths.append(framed.lengths)
        targets.append(framed.is_target)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
    document_lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(document_lengths)]).astype(np.int32))
    columns = {
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "text_bytes": pa.array(text_bytes.astype(np.int32)),
    }
    if target_spans is not None:
        columns["is_target"] = pa.ListArray.from_arrays(
            offsets, pa.array(np.concatenate(targets) if targets else np.zeros(0, np.uint8))
        )
    facts = {
        "num_documents": len(texts),
        "num_tokens": len(tokens),
        "num_text_bytes": int(text_bytes.sum()),
        "num_unknown_tokens": 0 if vocabulary.unk_id is None else int((tokens == vocabulary.unk_id).sum()),
    }
    return pa.record_batch(columns), facts


@dataclass(frozen=True)
class FramedDocuments:
    """Concatenated documents with their special tokens."""

    tokens: NDArray[Any]
    lengths: NDArray[np.int64]
    is_target: NDArray[np.uint8]


def as_written(
    ids: Sequence[Sequence[int]], dtype: np.dtype[Any], is_target: Sequence[NDArray[np.bool_]]
) -> FramedDocuments:
    """Concatenated documents without additional special tokens."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    tokens = np.fromiter(chain.from_iterable(ids), dtype, int(lengths.sum()))
    return FramedDocuments(tokens, lengths, np.concatenate(is_target).astype(np.uint8))


def frame(ids: Sequence[Sequence[int]], vocabulary: Vocabulary, dtype: np.dtype[Any]) -> FramedDocuments:
    """Concatenated documents; `<s>` and `</s>` are added where they are missing."""
    bare_lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    bare = np.fromiter(chain.from_iterable(ids), dtype, int(bare_lengths.sum()))
    # If one token does both (GPT-2), it only ends documents.
    lacks_bos = np.array([not document or document[0] != vocabulary.bos_id for document in ids], np.bool_)
    lacks_bos &= vocabulary.bos_id != vocabulary.eos_id
    lacks_eos = np.array([not document or document[-1] != vocabulary.eos_id for document in ids], np.bool_)
    lengths = bare_lengths + lacks_bos + lacks_eos
    stops = np.cumsum(lengths)
    tokens = np.empty(int(lengths.sum()), dtype)
    is_own = np.ones(len(tokens), np.bool_)
    for added, token in (((stops - lengths)[lacks_bos], vocabulary.bos_id), (stops[lacks_eos] - 1, vocabulary.eos_id)):
        tokens[added] = token
        is_own[added] = False
    tokens[is_own] = bare
    return FramedDocuments(tokens, lengths, np.ones(len(tokens), np.uint8))


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)


def _portions(texts: list[str]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the texts of one encoding call; encodings are far larger than the tokens kept of them."""
    start, size = 0, 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield start, index + 1
            start, size = index + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _encode(
    texts: list[str], spans: list[list[tuple[int, int]]] | None, tokenizer: Tokenizer
) -> tuple[list[list[int]], list[NDArray[np.bool_]] | None]:
    with panics_explained():
        if spans is None:
            return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)], None
        # encode_batch_fast gives no offsets, which the spans in characters need.
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids, is_target = [], []
    for found, wanted in zip(encoded, spans, strict=True):
        starts = np.array([start for start, _ in found.offsets], np.int64)
        inside = np.zeros(len(starts), np.bool_)
        for start, stop in wanted:
            inside |= (starts >= start) & (starts < stop)
        ids.append(found.ids)
        is_target.append(inside)
    return ids, is_target


@lru_cache(maxsize=1)
def _tokenizer(tokenizer_json: str) -> tuple[Tokenizer, Vocabulary]:
    # Every core already runs a task; threads of the library would oversubscribe them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_str(tokenizer_json)
    return tokenizer, vocabulary_of(tokenizer)
