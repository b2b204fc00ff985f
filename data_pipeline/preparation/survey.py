"""The survey of a corpus: a first reading that counts rows and rejects, before any tokenization."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.preparation.findings import findings_in, notes_on
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.pieces import Piece
from data_pipeline.reading.row_readers import ReadRows, read_piece
from data_pipeline.schema.manifest import FileReport
from data_pipeline.schema.rejects import Reason, Reject
from data_pipeline.tokens.arrow_files import arrow_bytes, map_arrow

_HASH_RANGE = 2**64
_SAMPLE = pa.schema({"first": pa.uint64(), "second": pa.uint64(), "text": pa.large_string()})
"""A record per text: both halves of its hash, and the text."""


def hash_texts(texts: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """128-bit hashes of texts. The first half selects the holdout; both halves identify the text.

    Returns:
        ((n, 2) hashes, (n,) UTF-8 bytes of each text).
    """
    encoded = [text.encode() for text in texts]
    digests = b"".join([hashlib.blake2b(data, digest_size=16).digest() for data in encoded])
    return np.frombuffer(digests, "<u8").reshape(-1, 2), np.fromiter(map(len, encoded), np.int64, len(encoded))


def holdout_threshold(share: float) -> int:
    """Texts whose first hash is below this number are held out.

    Args:
        share: Share of the texts, in [0, 1].
    """
    return round(share * _HASH_RANGE)


def is_below(hashes: NDArray[np.uint64], threshold: int) -> NDArray[np.bool_]:
    """(n,) True for hashes below a threshold in [0, 2**64]; 2**64 itself does not fit in a uint64."""
    below: NDArray[np.bool_] = hashes <= np.uint64(threshold - 1) if threshold > 0 else np.zeros(len(hashes), np.bool_)
    return below


@dataclass
class Survey:
    """Counts of the first reading."""

    files: dict[int, Counter[str]] = field(default_factory=dict)
    """Number of kept, rejected and blank rows, by file number."""
    rejects: Counter[str] = field(default_factory=Counter)
    num_text_bytes: int = 0
    num_held_out: int = 0
    lowest_hash: int = _HASH_RANGE
    highest_hash: int = -1

    @property
    def rows_kept(self) -> int:
        return sum(counts["kept"] for counts in self.files.values())

    @property
    def rows_rejected(self) -> int:
        return sum(self.rejects.values())

    @property
    def rows_read(self) -> int:
        return self.rows_kept + self.rows_rejected

    def add(self, result: dict[str, Any]) -> None:
        """Add the counts of one parcel, from `ParcelRows.counts`."""
        for number, counts in result["files"].items():
            self.files.setdefault(int(number), Counter()).update(counts)
        self.rejects.update(result["reasons"])
        self.num_text_bytes += result["num_text_bytes"]
        self.num_held_out += result["num_held_out"]
        self.lowest_hash = min(self.lowest_hash, int(result["lowest_hash"]))
        self.highest_hash = max(self.highest_hash, int(result["highest_hash"]))

    def refuse_files(self, corpus: Corpus) -> list[Reject]:
        """Count refused files and damaged ends of files, one reject each; returns these rejects."""
        entries = []
        for number, file in enumerate(corpus.files):
            for reason, detail in ((Reason.FILE_REFUSED, file.refused), (Reason.FILE_DAMAGED, file.damage)):
                if detail is not None:
                    entries.append(Reject(file.path, 0, reason, detail))
                    self.files.setdefault(number, Counter())["rejected"] += 1
                    self.rejects[reason.value] += 1
        return entries

    def file_reports(self, corpus: Corpus) -> tuple[FileReport, ...]:
        """A report on each file, with its counts."""
        reports = []
        for number, file in enumerate(corpus.files):
            counts = self.files.get(number, Counter())
            reports.append(
                FileReport(
                    path=file.path,
                    num_file_bytes=file.num_file_bytes,
                    blake2b=file.blake2b,
                    compression=file.compression,
                    encoding=None if file.format in ("parquet", "arrow") else file.encoding.name,
                    encoding_note=file.encoding.note,
                    format=file.format_in_words,
                    text_column=file.text_column,
                    rows_read=counts["kept"] + counts["rejected"],
                    rows_kept=counts["kept"],
                    rows_rejected=counts["rejected"],
                    num_blank_lines=counts["blank"],
                    refused=file.refused,
                    notes=notes_on(file, counts),
                    damage=file.damage or _damage_at(counts["damaged_at"]),
                )
            )
        return tuple(reports)


def _damage_at(row: int) -> str | None:
    return f"it is damaged from row {row:,} on" if row else None


@dataclass
class ParcelRows:
    """All rows of a parcel."""

    texts: list[str] = field(default_factory=list)
    target_spans: list[list[tuple[int, int]]] = field(default_factory=list)
    """(start, stop) of the predicted characters of each text: the answers of a dialogue, the whole of other texts."""
    rejects: list[Reject] = field(default_factory=list)
    files: dict[int, Counter[str]] = field(default_factory=dict)
    """Number of kept, rejected and blank rows, by file number."""

    def add(self, rows: ReadRows, file: int, *, looks_closer: bool) -> None:
        """Add the rows of one piece.

        Args:
            looks_closer: Also count the findings about their texts.
        """
        spans = rows.target_spans
        self.texts += rows.texts
        self.target_spans += spans if spans is not None else [[(0, len(text))] for text in rows.texts]
        self.rejects += rows.rejects
        counts = Counter(kept=len(rows.texts), rejected=len(rows.rejects), blank=rows.num_blank_lines)
        # Damage of a table shows while its rows are read.
        damaged = [reject for reject in rows.rejects if reject.reason is Reason.FILE_DAMAGED]
        counts["damaged_at"] = damaged[0].line if damaged else 0
        if looks_closer:
            counts += findings_in(rows.texts)
        self.files.setdefault(file, Counter()).update(counts)

    def counts(self, hashes: NDArray[np.uint64], text_bytes: NDArray[np.int64], corpus: Corpus) -> dict[str, Any]:
        """JSON-compatible counts for `Survey.add`.

        Args:
            hashes: From `hash_texts`, like text_bytes.
        """
        first = hashes[:, 0]
        return {
            "files": self.files,
            "reasons": Counter(reject.reason.value for reject in self.rejects),
            "num_text_bytes": int(text_bytes.sum()),
            "num_held_out": int(is_below(first, holdout_threshold(corpus.config.holdout)).sum()),
            "lowest_hash": str(first.min()) if len(first) else str(_HASH_RANGE),
            "highest_hash": str(first.max()) if len(first) else "-1",
        }

    def reject_lines(self) -> bytes:
        """The rejects as lines of rejects.jsonl."""
        return "".join(json.dumps(reject.as_json(), ensure_ascii=False) + "\n" for reject in self.rejects).encode()


def read_parcel(pieces: list[Piece], corpus: Corpus, *, looks_closer: bool = False) -> ParcelRows:
    """All rows of a parcel, kept or rejected."""
    rows = ParcelRows()
    for piece in pieces:
        read = read_piece(piece, corpus.files[piece.file], corpus.config, corpus.template)
        rows.add(read, piece.file, looks_closer=looks_closer)
    return rows


def survey_parcel(
    _name: str,
    pieces: list[Piece],
    *,
    corpus: Corpus,
    sample_share: float,
    wants_hashes: bool,
    looks_closer: bool = False,
) -> dict[str, Any]:
    """Counts of one parcel for `Survey.add`; "blobs" holds its rejects, sampled texts and hashes.

    Args:
        sample_share: Share of the texts, chosen by hash, to return for training a tokenizer.
        wants_hashes: Return the hashes of all texts, for finding duplicates.
        looks_closer: Also count the findings about the texts of each file.
    """
    rows = read_parcel(pieces, corpus, looks_closer=looks_closer)
    hashes, text_bytes = hash_texts(rows.texts)
    blobs = {"rejects": rows.reject_lines()}
    if sample_share > 0:
        blobs["sample"] = _sample(rows.texts, hashes, sample_share)
    if wants_hashes:
        blobs["hashes"] = hashes.tobytes()
    num_bytes = sum(len(piece.data) for piece in pieces)
    return {"num_bytes": num_bytes, "blobs": blobs} | rows.counts(hashes, text_bytes, corpus)


def sampled_texts(paths: Iterable[Path], *, threshold: int, drop_duplicates: bool) -> Iterator[str]:
    """Texts of the training split from the sample files of a survey, in corpus order.

    Args:
        threshold: From `holdout_threshold`; texts below it are held out.

    Raises:
        DamagedBlockError: A file is no sample.
    """
    seen: set[tuple[int, int]] = set()
    for path in paths:
        batch = map_arrow(path, _SAMPLE)
        first, second = batch.column("first").to_numpy(), batch.column("second").to_numpy()
        for index, text in enumerate(batch.column("text").to_pylist()):
            if int(first[index]) < threshold:
                continue
            if drop_duplicates:
                key = (int(first[index]), int(second[index]))
                if key in seen:
                    continue
                seen.add(key)
            yield text


def _sample(texts: list[str], hashes: NDArray[np.uint64], share: float) -> bytes:
    chosen = np.flatnonzero(hashes[:, 1] <= np.uint64(min(round(share * _HASH_RANGE), _HASH_RANGE - 1)))
    columns = [
        pa.array(hashes[chosen, 0]),
        pa.array(hashes[chosen, 1]),
        pa.array([texts[index] for index in chosen.tolist()], pa.large_string()),
    ]
    return arrow_bytes(pa.record_batch(columns, _SAMPLE))
