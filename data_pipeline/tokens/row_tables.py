"""Row tables on disk: they locate rows of one document or of conversations in the stream. Packed rows need none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.files.whole_files import write_whole
from data_pipeline.schema.corpus_config import PackingConfig
from data_pipeline.schema.manifest import RowReport, SplitName, SplitReport
from data_pipeline.tokens.arrow_files import arrow_bytes
from data_pipeline.tokens.packing import (
    ConversationPieces,
    RowTable,
    conversation_pieces,
    fitted_rows,
    num_packed_rows,
    one_document_rows,
)
from data_pipeline.tokens.token_blocks import read_block, report_block


def make_rows(
    folder: Path, splits: dict[SplitName, SplitReport], packing: PackingConfig, *, begin_id: int
) -> dict[SplitName, RowReport]:
    """Counts of the rows of each split; writes the row tables into `folder`.

    Args:
        begin_id: Token that begins a text, or a turn of a conversation.
    """
    if packing.rows == "conversations":
        return {name: _conversations(folder, name, split, packing, begin_id) for name, split in splits.items()}
    make = _packed if packing.rows == "packed" else _one_per_row
    return {name: make(folder, name, split, packing) for name, split in splits.items()}


def _packed(_folder: Path, _name: SplitName, split: SplitReport, packing: PackingConfig) -> RowReport:
    num_rows = num_packed_rows(split.num_tokens, packing.sequence_length)
    return RowReport(
        num_rows=num_rows,
        num_tokens=split.num_tokens,
        num_text_bytes=split.num_text_bytes,
        num_padding_tokens=num_rows * packing.sequence_length - split.num_tokens,
        num_truncated_tokens=0,
    )


def _one_per_row(folder: Path, name: SplitName, split: SplitReport, packing: PackingConfig) -> RowReport:
    tables = []
    start, num_text_bytes = 0, 0
    for block in split.blocks:
        batch = read_block(folder / block.name)
        lengths = np.diff(batch.column("tokens").offsets.to_numpy()).astype(np.int64)
        tables.append(one_document_rows(lengths, packing, first_start=start))
        num_text_bytes += _bytes_in_rows(batch.column("text_bytes").to_numpy(), lengths, packing)
        start += block.num_tokens
    table = RowTable(
        starts=np.concatenate([np.zeros(0, np.int64), *(table.starts for table in tables)]),
        lengths=np.concatenate([np.zeros(0, np.int32), *(table.lengths for table in tables)]),
        is_cut=np.concatenate([np.zeros(0, np.bool_), *(table.is_cut for table in tables)]),
    )
    path = folder / f"rows-{name}.arrow"
    columns = {"start": table.starts, "length": table.lengths, "is_cut": table.is_cut.astype(np.uint8)}
    write_whole(path, arrow_bytes(pa.record_batch({key: pa.array(column) for key, column in columns.items()})))
    num_tokens = int(table.lengths.sum())
    return RowReport(
        num_rows=table.num_rows,
        num_tokens=num_tokens,
        num_text_bytes=num_text_bytes,
        num_padding_tokens=table.num_rows * packing.sequence_length - num_tokens,
        num_truncated_tokens=split.num_tokens - num_tokens,
        row_table=report_block(path),
    )


def _conversations(
    folder: Path, name: SplitName, split: SplitReport, packing: PackingConfig, begin_id: int
) -> RowReport:
    """Rows of conversations: each row is a list of slices of the stream."""
    found: list[ConversationPieces] = []
    start, num_answer_tokens = 0, 0
    for block in split.blocks:
        batch = read_block(folder / block.name)
        tokens, is_target = batch.column("tokens"), batch.column("is_target").values.to_numpy().astype(np.bool_)
        lengths = np.diff(tokens.offsets.to_numpy()).astype(np.int64)
        is_begin = tokens.values.to_numpy() == begin_id
        pieces = conversation_pieces(lengths, is_target, is_begin, packing, first_start=start)
        targets_before = np.concatenate([[0], np.cumsum(is_target)])
        begins = pieces.starts - start
        num_answer_tokens += int((targets_before[begins + pieces.lengths] - targets_before[begins]).sum())
        found.append(pieces)
        start += block.num_tokens
    starts, lengths = (
        np.concatenate([np.zeros(0, np.int64), *(getattr(one, side) for one in found)])
        for side in ("starts", "lengths")
    )
    rows = fitted_rows(lengths, packing.sequence_length)
    order = np.argsort(rows, kind="stable")
    num_rows = int(rows.max()) + 1 if len(rows) else 0
    offsets = pa.array(np.searchsorted(rows[order], np.arange(num_rows + 1)).astype(np.int32))
    columns = {
        "starts": pa.ListArray.from_arrays(offsets, pa.array(starts[order])),
        "lengths": pa.ListArray.from_arrays(offsets, pa.array(lengths[order].astype(np.int32))),
    }
    path = folder / f"rows-{name}.arrow"
    write_whole(path, arrow_bytes(pa.record_batch(columns)))
    num_tokens = int(lengths.sum())
    return RowReport(
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_text_bytes=round(split.num_text_bytes * num_tokens / max(split.num_tokens, 1)),
        num_padding_tokens=num_rows * packing.sequence_length - num_tokens,
        num_truncated_tokens=split.num_tokens - num_tokens,
        row_table=report_block(path),
        num_answer_tokens=num_answer_tokens,
        num_split=sum(one.num_split for one in found),
        num_cut_answers=sum(one.num_cut_answers for one in found),
        num_lost_answers=sum(one.num_lost_answers for one in found),
    )


def _bytes_in_rows(text_bytes: NDArray[np.int32], lengths: NDArray[np.int64], packing: PackingConfig) -> int:
    """Text bytes in rows; a truncated document counts in proportion to its kept tokens."""
    if packing.too_long == "split":
        return int(text_bytes.sum(dtype=np.int64))
    return round(float((text_bytes * np.minimum(1.0, packing.sequence_length / lengths)).sum()))
