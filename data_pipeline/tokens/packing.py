"""Pack documents into rows of equal length. Pure arithmetic on lengths: tokens are neither copied nor read.

A split is one stream of tokens, the concatenation of its documents `<s> .. </s>`. A row is a slice of that stream,
given by its start and its number of tokens. One stream therefore serves every sequence length, and a second stage with
longer rows needs no new tokenization.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema.corpus_config import PackingConfig


@dataclass(frozen=True)
class RowTable:
    """Slices of a split's stream, one per row."""

    starts: NDArray[np.int64]
    """Position of the first token in the stream."""
    lengths: NDArray[np.int32]
    """Tokens of the row, padding not counted."""
    is_cut: NDArray[np.bool_]
    """Rows whose document is truncated: their last token is replaced by the end of text."""

    @property
    def num_rows(self) -> int:
        return len(self.starts)


def num_packed_rows(num_tokens: int, sequence_length: int) -> int:
    """Number of packed rows of a stream; the last row may have padding."""
    return -(-num_tokens // sequence_length)


def packed_rows(row_numbers: NDArray[np.int64], *, num_tokens: int, sequence_length: int) -> RowTable:
    """The packed rows with these numbers: row r starts at r x sequence_length and may cut documents."""
    starts = row_numbers * sequence_length
    lengths = np.minimum(sequence_length, num_tokens - starts).astype(np.int32)
    return RowTable(starts, lengths, np.zeros(len(starts), np.bool_))


def one_document_rows(document_lengths: NDArray[np.int64], packing: PackingConfig, *, first_start: int = 0) -> RowTable:
    """Rows of one document each, or of one window of a document longer than a row.

    `too_long: truncate` keeps `<s>`, the first tokens that fit, and `</s>`, like the tokenizers library.

    Args:
        document_lengths: Tokens of consecutive documents of the stream, special tokens included.
        first_start: Position of the first of them in the stream.
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


@dataclass(frozen=True)
class ConversationPieces:
    """Slices of the stream, in its order, each of one conversation and at most one row long."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    num_split: int
    """Conversations of more than one slice."""
    num_cut_answers: int
    """Answers that do not fit in one row with their question."""
    num_lost_answers: int
    """Answers in no slice."""


def conversation_pieces(
    document_lengths: NDArray[np.int64],
    is_target: NDArray[np.bool_],
    is_begin: NDArray[np.bool_],
    packing: PackingConfig,
    *,
    first_start: int = 0,
) -> ConversationPieces:
    """Split conversations into slices that fit in a row, as few as possible for each conversation.

    A slice ends after an answer and the next one begins with the next turn, so an answer stays with its question;
    later answers lose the earlier turns. An answer that does not fit with its question is cut at the end of the row,
    without an end mark, so that the model does not learn to stop there.

    Args:
        document_lengths: Tokens of consecutive conversations of the stream.
        is_target: For each of these tokens, True if it is predicted.
        is_begin: For each of these tokens, True if it begins a turn.
        first_start: Position of the first of them in the stream.
    """
    longest = packing.sequence_length
    slices: list[tuple[int, int]] = []
    num_split = num_cut = num_lost = 0
    stops = np.cumsum(document_lengths)
    for start, stop in zip((stops - document_lengths).tolist(), stops.tolist(), strict=True):
        if stop - start <= longest:
            slices.append((start, stop - start))
            continue
        found, cut, lost = _slices_of_one(is_target[start:stop], is_begin[start:stop], packing)
        slices += [(start + begin, end - begin) for begin, end in found]
        num_split += len(found) > 1
        num_cut += cut
        num_lost += lost
    starts, lengths = (np.array([one[side] for one in slices], np.int64) for side in (0, 1))
    return ConversationPieces(first_start + starts, lengths, num_split, num_cut, num_lost)


def _slices_of_one(
    is_target: NDArray[np.bool_], is_begin: NDArray[np.bool_], packing: PackingConfig
) -> tuple[list[tuple[int, int]], int, int]:
    """(slices as (begin, end), answers cut, answers lost) for a conversation longer than a row."""
    longest = packing.sequence_length
    padded = np.concatenate([[False], is_target, [False]])
    answer_starts = np.flatnonzero(padded[1:] & ~padded[:-1])
    answer_ends = np.flatnonzero(~padded[1:] & padded[:-1])
    turns = np.flatnonzero(is_begin)
    slices: list[tuple[int, int]] = []
    num_cut = num_lost = answer = 0
    begin = 0
    while answer < len(answer_ends):
        # Answers `answer` .. `after` - 1 end within a row that starts at `begin`.
        after = int(np.searchsorted(answer_ends, begin + longest, side="right"))
        if after > answer:
            slices.append((begin, int(answer_ends[after - 1])))
        else:
            after = answer + 1
            is_seen = int(answer_starts[answer]) < begin + longest
            if is_seen:
                slices.append((begin, begin + longest))
            num_cut += is_seen
            num_lost += not is_seen
        answer = after
        if packing.too_long == "truncate":
            num_lost += len(answer_ends) - answer
            break
        if answer < len(answer_ends):
            end = int(answer_ends[answer - 1])
            following = turns[np.searchsorted(turns, end) :]
            # Other chat templates may begin turns with another token.
            is_before_answer = len(following) > 0 and following[0] < answer_starts[answer]
            begin = int(following[0]) if is_before_answer else end
    return slices, num_cut, num_lost


def fitted_rows(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Row of each piece by best-fit-decreasing packing: no row holds more than `capacity` tokens.

    Rows are numbered by their first piece, so they follow the order of the corpus.

    Source: best-fit packing, arXiv:2404.10830.
    """
    rows = np.zeros(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r is set if some row has exactly r tokens left. The lowest set bit from `length` upward is the best fit.
    room = 0
    num_rows = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fits = room >> length
        if fits:
            left = length + (fits & -fits).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                room &= ~(1 << left)
        else:
            left, row = capacity, num_rows
            num_rows += 1
        rows[piece] = row
        if left > length:
            open_rows[left - length].append(row)
            room |= 1 << (left - length)
    _, first_pieces = np.unique(rows, return_index=True)
    renumbered = np.empty(num_rows, np.int64)
    renumbered[np.argsort(first_pieces)] = np.arange(num_rows)
    return renumbered[rows]
