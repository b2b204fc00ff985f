"""Documents to rows of equal length. Pure arithmetic on lengths: tokens are neither copied nor looked at.

A split is one long stream of tokens, each document `<s> .. </s>`, documents end to end. A row is a slice of that
stream: where it starts and how many real tokens it has. So the same stream serves every sequence length, and a
corpus that is prepared for a second stage is not tokenized again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema.corpus_config import PackingConfig


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


@dataclass(frozen=True)
class ConversationPieces:
    """What of conversations stands in rows: slices of the stream, in its order."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    num_split: int
    """Conversations of more than one slice."""
    num_cut_answers: int
    num_lost_answers: int


def conversation_pieces(
    document_lengths: NDArray[np.int64],
    is_target: NDArray[np.bool_],
    is_begin: NDArray[np.bool_],
    packing: PackingConfig,
    *,
    first_start: int = 0,
) -> ConversationPieces:
    """Conversations as slices that fit a row: whole ones as they are, longer ones in as few slices as can be.

    A slice ends behind an answer and the next begins with the next turn, so that no answer is torn from its question,
    though later ones lose the turns before. An answer that does not fit with its question ends where the row does, and
    without an end mark, so that nobody learns to end there.

    Args:
        document_lengths: Tokens of each conversation of a stretch of the stream.
        is_target: For each token of that stretch, whether it is predicted.
        is_begin: Whether it is the token that begins a turn.
        first_start: Where that stretch begins in the stream.
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
    """(slices as (begin, end), answers cut, answers lost) of a conversation longer than a row."""
    longest = packing.sequence_length
    padded = np.concatenate([[False], is_target, [False]])
    answer_starts = np.flatnonzero(padded[1:] & ~padded[:-1])
    answer_ends = np.flatnonzero(~padded[1:] & padded[:-1])
    turns = np.flatnonzero(is_begin)
    slices: list[tuple[int, int]] = []
    num_cut = num_lost = answer = 0
    begin = 0
    while answer < len(answer_ends):
        # Answers `answer` up to `after`, not included, end within a row that begins here.
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
            # A foreign template may begin its turns with another token.
            is_before_answer = len(following) > 0 and following[0] < answer_starts[answer]
            begin = int(following[0]) if is_before_answer else end
    return slices, num_cut, num_lost


def fitted_rows(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Row of each piece, so that no row holds more than `capacity` and few are needed: best fit, longest first.

    Rows are numbered by their first piece, so that they follow the order of the corpus.

    Source: best-fit packing, arXiv:2404.10830.
    """
    rows = np.zeros(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r: some row has room for exactly r more. The lowest set bit from a length on is the best fit.
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
