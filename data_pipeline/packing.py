"""Documents to rows of equal length. Pure arithmetic on lengths: tokens are neither copied nor looked at.

A split is one long stream of tokens, each document `<s> .. </s>`, documents end to end. A row is a slice of that
stream: where it starts and how many real tokens it has. So the same stream serves every sequence length, and a
corpus that is prepared for a second stage is not tokenized again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.corpus_config import PackingConfig


@dataclass(frozen=True)
class RowTable:
    """Where rows of one split lie in its stream."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    is_cut: NDArray[np.bool_]
    """Rows whose document goes on behind the row and is thrown away: their last token becomes the end of text."""

    @property
    def num_rows(self) -> int:
        return len(self.starts)


def num_packed_rows(num_tokens: int, sequence_length: int) -> int:
    """Rows that a stream fills when rows follow each other without a gap; the last may have padding."""
    return -(-num_tokens // sequence_length)


def packed_rows(row_numbers: NDArray[np.int64], *, num_tokens: int, sequence_length: int) -> RowTable:
    """The packed rows of these numbers: row r starts at r x sequence_length, whatever documents it cuts."""
    starts = row_numbers * sequence_length
    lengths = np.minimum(sequence_length, num_tokens - starts).astype(np.int32)
    return RowTable(starts, lengths, np.zeros(len(starts), np.bool_))


def one_document_rows(document_lengths: NDArray[np.int64], packing: PackingConfig, *, first_start: int = 0) -> RowTable:
    """Rows that hold one document each, or one window of a document that is longer than a row.

    truncate keeps `<s>`, the first tokens that fit and `</s>`, as the tokenizers library truncates.

    Args:
        document_lengths: Tokens of each document of a stretch of the stream, special tokens included.
        first_start: Where that stretch begins in the stream.
    """
    lengths = document_lengths.astype(np.int64)
    starts = first_start + np.cumsum(lengths) - lengths
    longest = packing.sequence_length
    if packing.too_long == "truncate":
        return RowTable(starts, np.minimum(lengths, longest).astype(np.int32), lengths > longest)
    num_windows = -(-lengths // longest)
    windows_before = np.cumsum(num_windows) - num_windows
    window = np.arange(int(num_windows.sum()), dtype=np.int64) - np.repeat(windows_before, num_windows)
    left = np.repeat(lengths, num_windows) - window * longest
    return RowTable(
        np.repeat(starts, num_windows) + window * longest,
        np.minimum(left, longest).astype(np.int32),
        np.zeros(len(window), np.bool_),
    )
