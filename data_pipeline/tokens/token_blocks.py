"""Token blocks on disk: memory-mapped Arrow files, read by row number and verified on opening.

A block is an Arrow IPC file with one record per document: column `tokens` (list of uint16 or uint32) and, for
conversations, `is_target` (list of uint8). The concatenated lists of all blocks are the stream of the split; rows are
slices of it (packing.py).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.files.whole_files import hash_file, write_whole
from data_pipeline.schema.manifest import BlockReport, Manifest, SplitName, read_manifest
from data_pipeline.tokens.arrow_files import DamagedBlockError, map_arrow
from data_pipeline.tokens.packing import RowTable, packed_rows
from data_pipeline.tokens.tokenizer import Vocabulary, load_tokenizer, vocabulary_of

ONE_DOCUMENT_ROWS = pa.schema({"start": pa.int64(), "length": pa.int32(), "is_cut": pa.uint8()})
"""A record per row: its slice of the stream. One document a row, or a part of one."""
CONVERSATION_ROWS = pa.schema({"starts": pa.list_(pa.int64()), "lengths": pa.list_(pa.int32())})
"""A record per row: several slices of the stream, in order."""


def block_schema(dtype: Any, *, has_targets: bool) -> pa.Schema:
    """The schema of all blocks of a corpus: a record per document.

    Args:
        dtype: NumPy's uint16 or uint32.
    """
    columns = {"tokens": pa.list_(pa.from_numpy_dtype(dtype)), "text_bytes": pa.int32()}
    return pa.schema(columns | ({"is_target": pa.list_(pa.uint8())} if has_targets else {}))


_BLOCKS = [block_schema(dtype, has_targets=targets) for dtype in (np.uint16, np.uint32) for targets in (False, True)]


@dataclass(frozen=True)
class Rows:
    """n rows of T tokens."""

    tokens: NDArray[Any]
    """(n, T) uint16 or uint32, padded with the pad id."""
    num_tokens: NDArray[np.int32]
    """(n,) number of tokens before the padding."""
    document_ids: NDArray[np.int32] | None
    """(n, T) 0, 1, 2 .. within the row; padding belongs to the last document. None: a row is one document, or
    attention crosses documents."""
    is_target: NDArray[np.bool_] | None = None
    """(n, T) True for tokens that may be predicted. None: all but padding."""
    labels: NDArray[np.int64] | None = None
    """(n,) class of each row. None: language modelling."""

    def is_real(self) -> NDArray[np.bool_]:
        """(n, T): False for padding."""
        is_real: NDArray[np.bool_] = np.arange(self.tokens.shape[1]) < self.num_tokens[:, None]
        return is_real


class TokenBlocks:
    """The rows of one split, by number. It pickles without data; files are memory-mapped at the first read."""

    def __init__(self, folder: Path, split: SplitName, manifest: Manifest, vocabulary: Vocabulary) -> None:
        self._folder = folder
        self._report = manifest.splits[split]
        self._rows = manifest.rows[split]
        self._packing = manifest.packing
        self._dtype = np.dtype(manifest.token_dtype)
        self._has_targets = manifest.has_targets
        self._vocabulary = vocabulary
        tokens_in_blocks = [block.num_tokens for block in self._report.blocks]
        self._block_starts = np.cumsum([0, *tokens_in_blocks], dtype=np.int64)
        self._mapped: dict[int, _MappedBlock] = {}
        self._table: pa.RecordBatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}, "_table": None}

    @property
    def num_rows(self) -> int:
        """Number of rows; the last one may be partly padding."""
        return self._rows.num_rows

    @property
    def sequence_length(self) -> int:
        """Length of a row in tokens, padding included."""
        return self._packing.sequence_length

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, padding not counted."""
        return self._rows.num_tokens

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text in all rows."""
        return self._rows.num_text_bytes

    def rows(self, row_numbers: NDArray[np.int64]) -> Rows:
        """Copies of the rows with these numbers, in this order.

        Raises:
            IndexError: A number is outside 0 .. num_rows - 1.
        """
        row_numbers = np.asarray(row_numbers, np.int64)
        if len(row_numbers) and not 0 <= row_numbers.min() <= row_numbers.max() < self.num_rows:
            raise IndexError(f"row numbers {row_numbers.min()}..{row_numbers.max()} outside 0..{self.num_rows - 1}")
        shape = (len(row_numbers), self.sequence_length)
        tokens = np.full(shape, self._vocabulary.pad_id, self._dtype)
        is_target = np.zeros(shape, np.bool_) if self._has_targets else None
        document_ids = np.zeros(shape, np.int32) if self._packing.confines_attention else None
        num_tokens = np.zeros(len(row_numbers), np.int32)
        holds_conversations = self._packing.rows == "conversations"
        slices = self._slices_of_conversations(row_numbers) if holds_conversations else self._slices(row_numbers)
        for row, start, length, is_cut in slices:
            first = int(num_tokens[row])
            for offset, block, begin, end in self._pieces(start, length):
                here = slice(first + offset, first + offset + end - begin)
                tokens[row, here] = block.tokens[begin:end]
                if is_target is not None and block.is_target is not None:
                    is_target[row, here] = block.is_target[begin:end]
                if document_ids is not None and not holds_conversations:
                    document_ids[row, offset + block.document_starts(begin, end)] = 1
            if document_ids is not None:
                document_ids[row, first] = 1
            num_tokens[row] += length
            if is_cut:
                tokens[row, -1] = self._vocabulary.eos_id
                if is_target is not None:
                    is_target[row, -1] = False  # The text does not end here, so do not train on this end of text.
        if document_ids is not None:
            document_ids[:, 0] = 0
            np.cumsum(document_ids, axis=1, out=document_ids)
        return Rows(tokens, num_tokens, document_ids, is_target)

    def block_tokens(self, number: int) -> NDArray[Any]:
        """All tokens of one block, as a view of the mapped file; pages are read on access."""
        return self._block(number).tokens

    def document_lengths(self, number: int) -> NDArray[np.int64]:
        """Tokens of each document of one block, special tokens included."""
        return np.diff(self._block(number).offsets).astype(np.int64)

    @property
    def num_blocks(self) -> int:
        """Number of files that hold the stream."""
        return len(self._report.blocks)

    def _slices(self, row_numbers: NDArray[np.int64]) -> Iterator[tuple[int, int, int, bool]]:
        """(index among the requested rows, start of its slice in the stream, number of tokens, is cut)."""
        if self._rows.row_table is None:
            table = packed_rows(row_numbers, num_tokens=self._report.num_tokens, sequence_length=self.sequence_length)
        else:
            columns = [_flat(self._row_table.column(name))[row_numbers] for name in ("start", "length", "is_cut")]
            table = RowTable(columns[0], columns[1], columns[2].astype(np.bool_))
        facts = (table.starts.tolist(), table.lengths.tolist(), table.is_cut.tolist())
        for row, (start, length, is_cut) in enumerate(zip(*facts, strict=True)):
            yield row, start, length, is_cut

    def _slices_of_conversations(self, row_numbers: NDArray[np.int64]) -> Iterator[tuple[int, int, int, bool]]:
        """Like `_slices`, but with several slices per row, in order."""
        starts, lengths = (self._row_table.column(name) for name in ("starts", "lengths"))
        offsets = _flat(starts.offsets)
        for row, number in enumerate(row_numbers.tolist()):
            here = slice(int(offsets[number]), int(offsets[number + 1]))
            for start, length in zip(
                _flat(starts.values)[here].tolist(), _flat(lengths.values)[here].tolist(), strict=True
            ):
                yield row, start, length, False

    @property
    def _row_table(self) -> pa.RecordBatch:
        if self._table is None:
            assert self._rows.row_table is not None
            schema = CONVERSATION_ROWS if self._packing.rows == "conversations" else ONE_DOCUMENT_ROWS
            self._table = map_arrow(self._folder / self._rows.row_table.name, schema)
        return self._table

    def _pieces(self, start: int, length: int) -> list[tuple[int, "_MappedBlock", int, int]]:
        """Parts of a slice as (offset in the slice, block, begin, end): several if it crosses blocks."""
        pieces = []
        offset = 0
        number = int(np.searchsorted(self._block_starts, start, side="right")) - 1
        while offset < length:
            begin = start + offset - int(self._block_starts[number])
            end = min(begin + length - offset, int(self._block_starts[number + 1] - self._block_starts[number]))
            if end > begin:
                pieces.append((offset, self._block(number), begin, end))
            offset += end - begin
            number += 1
        return pieces

    def _block(self, number: int) -> "_MappedBlock":
        if number not in self._mapped:
            schema = block_schema(self._dtype, has_targets=self._has_targets)
            self._mapped[number] = _MappedBlock.open(self._folder, self._report.blocks[number], schema)
        return self._mapped[number]


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus, opened for training."""

    folder: Path
    manifest: Manifest
    vocabulary: Vocabulary
    train: TokenBlocks
    holdout: TokenBlocks
    tokenizer_path: Path
    fingerprint: str


def open_prepared(folder: Path) -> PreparedCorpus:
    """The corpus in a prepared folder, after verifying every file. Needs no Ray.

    Verified files are recorded by size and modification time, so a second opening costs one `stat` per file.

    Raises:
        InputFault: The folder holds no prepared corpus.
        DamagedBlockError: A file is missing or altered; the message names it.
    """
    manifest = read_manifest(folder)
    tables = [rows.row_table for rows in manifest.rows.values() if rows.row_table is not None]
    verify_files(folder, [*(block for split in manifest.splits.values() for block in split.blocks), *tables])
    tokenizer_path = folder / "tokenizer.json"
    vocabulary = vocabulary_of(load_tokenizer(tokenizer_path))
    return PreparedCorpus(
        folder=folder,
        manifest=manifest,
        vocabulary=vocabulary,
        train=TokenBlocks(folder, "train", manifest, vocabulary),
        holdout=TokenBlocks(folder, "holdout", manifest, vocabulary),
        tokenizer_path=tokenizer_path,
        fingerprint=manifest.fingerprint,
    )


def verify_files(folder: Path, reports: Sequence[BlockReport]) -> None:
    """Check size and hash of every file.

    Raises:
        DamagedBlockError: A file is missing, truncated or altered.
    """
    stamp_path = folder / "verified.json"
    known: dict[str, list[int]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(stamp_path.read_text())
    seen = {}
    for report in reports:
        path = folder / report.name
        try:
            status = path.stat()
        except OSError as cause:
            raise DamagedBlockError(f"{path} is missing; delete {folder} and prepare again") from cause
        if status.st_size != report.num_file_bytes:
            raise DamagedBlockError(
                f"{path} has {status.st_size:,} bytes and should have {report.num_file_bytes:,}; "
                f"delete {folder} and prepare again"
            )
        seen[report.name] = [status.st_size, status.st_mtime_ns]
        if known.get(report.name) != seen[report.name] and hash_file(path) != report.blake2b:
            raise DamagedBlockError(f"{path} was altered after it was written; delete {folder} and prepare again")
    if seen != known:
        # A read-only folder is hashed at every opening, which is only slower.
        with suppress(OSError):
            write_whole(stamp_path, json.dumps(seen).encode())


def report_block(path: Path) -> BlockReport:
    """Counts, size and hash of an Arrow file."""
    batch = map_arrow(path, *_BLOCKS, ONE_DOCUMENT_ROWS, CONVERSATION_ROWS)
    has_tokens = "tokens" in batch.schema.names
    return BlockReport(
        name=path.name,
        num_documents=batch.num_rows if has_tokens else 0,
        num_tokens=len(batch.column("tokens").values) if has_tokens else 0,
        num_file_bytes=path.stat().st_size,
        blake2b=hash_file(path),
    )


def read_block(path: Path) -> pa.RecordBatch:
    """The documents of a block, memory-mapped.

    Raises:
        DamagedBlockError: The file is no block.
    """
    return map_arrow(path, *_BLOCKS)


@dataclass(frozen=True)
class _MappedBlock:
    tokens: NDArray[Any]
    offsets: NDArray[np.int32]
    is_target: NDArray[np.uint8] | None

    @classmethod
    def open(cls, folder: Path, report: BlockReport, schema: pa.Schema) -> "_MappedBlock":
        batch = map_arrow(folder / report.name, schema)
        tokens = batch.column("tokens")
        is_target = _flat(batch.column("is_target").values) if "is_target" in batch.schema.names else None
        lengths = {len(tokens.values), report.num_tokens, report.num_tokens if is_target is None else len(is_target)}
        if len(lengths) > 1:
            raise DamagedBlockError(
                f"{folder / report.name} has {len(tokens.values):,} tokens and should have {report.num_tokens:,}; "
                f"delete {folder} and prepare again"
            )
        return cls(_flat(tokens.values), _flat(tokens.offsets), is_target)

    def document_starts(self, begin: int, end: int) -> NDArray[np.int64]:
        """Starts of documents in tokens[begin:end], relative to `begin`."""
        first, stop = np.searchsorted(self.offsets[:-1], [begin, end])
        starts: NDArray[np.int64] = self.offsets[first:stop].astype(np.int64) - begin
        return starts


def _flat(column: Any) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return values
