"""Rows of a Parquet file in bounded memory, however its pages are compressed and encoded.

A few bytes of Parquet may hold gigabytes: a compressed page, a dictionary entry that every row names, or values that
share prefixes. The headers of the pages tell the sizes before anything is decompressed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from data_pipeline.formats.batch_rows import rows_of
from data_pipeline.formats.parquet_files import open_parquet
from data_pipeline.formats.parquet_pages import Page, page_headers
from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.rejects import Reason
from data_pipeline.schema.settings import format_bytes

_BATCH_BYTES = 64 << 20
_MOST_ROWS = 1024
_BYTES_OF_A_VALUE = 16
"""Levels, index and offset of a value in memory, besides its text."""
_NESTED_BYTES = 256 << 20
_NESTED_RATIO = 20


def pages_refused(stream: IO[bytes], columns: Sequence[str], *, longest_row: int) -> str | None:
    """Reason why the columns of a Parquet file cannot be read in bounded memory; None if they can.

    Raises:
        ValueError, OSError, pa.ArrowException: The file is damaged.
    """
    metadata = open_parquet(stream).metadata
    try:
        for group in range(metadata.num_row_groups):
            _chunks_of(stream, metadata, group, columns, longest_row)
    except CorpusError as fault:
        return str(fault)
    return None


def parquet_rows(stream: IO[bytes], columns: Sequence[str], *, longest_row: int) -> Iterator[dict[str, Any] | Reason]:
    """Every row as plain values, or the reason for rejecting it.

    Args:
        stream: A seekable file.
        columns: Columns to read.
        longest_row: Bytes of text in a row beyond which it is too long.

    Raises:
        CorpusError: `pages_refused` gives a reason.
        ValueError, OSError, pa.ArrowException: The file is damaged.
    """
    files: dict[tuple[str, ...], Any] = {(): _opened(stream, ())}
    metadata = files[()].metadata
    for group in range(metadata.num_row_groups):
        chunks = _chunks_of(stream, metadata, group, columns, longest_row)
        # As a dictionary, a text that all values name is in memory once. Arrow's dictionary grows from batch to batch,
        # so the row group is then read at once.
        repeated = tuple(chunk.path for chunk in chunks if chunk.may_repeat_texts)
        # The footer lists all row groups: read for each of them, it would take quadratic time.
        if repeated not in files:
            files[repeated] = _opened(stream, repeated)
        num_rows = metadata.row_group(group).num_rows
        sizes = [chunk.rows_at_once(num_rows) for chunk in chunks]
        size = max(1, num_rows if repeated else min(sizes, default=_MOST_ROWS))
        num_given = 0
        try:
            for batch in files[repeated].iter_batches(batch_size=size, row_groups=[group], columns=list(columns)):
                yield from rows_of(batch, longest_row=longest_row)
                num_given += batch.num_rows
        except (ValueError, OSError, pa.ArrowException):
            # The rows of the batch before the damage, one by one.
            singles = files[repeated].iter_batches(batch_size=1, row_groups=[group], columns=list(columns))
            for batch in islice(singles, num_given, None):
                yield from rows_of(batch, longest_row=longest_row)
            raise


def _opened(stream: IO[bytes], as_dictionaries: tuple[str, ...]) -> Any:
    # Without a buffer size, Arrow holds whole column chunks.
    return open_parquet(stream, read_dictionary=list(as_dictionaries), buffer_size=1 << 20)


@dataclass(frozen=True)
class _Chunk:
    """The pages of one column in one row group."""

    path: str
    is_nested: bool
    pages: tuple[Page, ...]

    @property
    def expanded_bytes(self) -> int:
        """Bytes of all pages and their values in memory, where texts of a dictionary count once."""
        return sum(page.num_bytes + _BYTES_OF_A_VALUE * page.num_values for page in self.pages)

    @property
    def longest_repeated_bytes(self) -> int:
        """Most bytes of a text that many values may name: it is in the dictionary, or a prefix of all of them."""
        if any(page.shares_prefixes for page in self.pages):
            return sum(page.num_bytes for page in self.pages)
        return max((page.num_bytes for page in self.pages if page.is_dictionary), default=0)

    @property
    def may_repeat_texts(self) -> bool:
        """True for nested values, any number of which may lie in one row, if they may be much larger than the pages."""
        return self.is_nested and self.longest_repeated_bytes * self.num_values > _NESTED_BYTES

    @property
    def num_values(self) -> int:
        return sum(page.num_values for page in self.pages if not page.is_dictionary)

    def rows_at_once(self, num_rows: int) -> int:
        """Rows that take about 64 MiB in memory; 0 for less than one."""
        if self.is_nested:
            return min(_MOST_ROWS, _BATCH_BYTES * num_rows // max(self.expanded_bytes, 1))
        data = (page for page in self.pages if not page.is_dictionary and page.num_values)
        largest = max((page.num_bytes // page.num_values for page in data), default=0)
        return min(_MOST_ROWS, _BATCH_BYTES // max(largest, self.longest_repeated_bytes, 1))


def _chunks_of(stream: IO[bytes], metadata: Any, group: int, columns: Sequence[str], longest_row: int) -> list[_Chunk]:
    wanted = set(columns)
    row_group = metadata.row_group(group)
    chunks = []
    for index in range(metadata.num_columns):
        column = row_group.column(index)
        # A name may itself hold dots.
        path = column.path_in_schema
        if not any(path == name or path.startswith(f"{name}.") for name in wanted):
            continue
        is_nested = metadata.schema.column(index).max_repetition_level > 0
        chunk = _Chunk(path, is_nested, tuple(page_headers(stream, column)))
        _check(chunk, column.total_compressed_size, longest_row)
        chunks.append(chunk)
    return chunks


def _check(chunk: _Chunk, num_compressed_bytes: int, longest_row: int) -> None:
    remedy = f"raise corpus.longest_row, now {format_bytes(longest_row)}, or write the file again with smaller"
    largest = max((page.num_bytes for page in chunk.pages), default=0)
    if largest > longest_row:
        raise CorpusError(f"a page of its column {chunk.path!r} expands to {format_bytes(largest)}; {remedy} pages")
    if not chunk.is_nested:
        return
    # Which rows own the values of a nested column is not known before they are read, so one row may own all.
    expanded_bytes = chunk.expanded_bytes
    if any(page.shares_prefixes for page in chunk.pages) and chunk.may_repeat_texts:
        # Arrow reads no dictionary of them.
        expanded_bytes += chunk.longest_repeated_bytes * chunk.num_values
    if expanded_bytes > max(longest_row + _NESTED_BYTES, _NESTED_RATIO * num_compressed_bytes):
        raise CorpusError(
            f"a row group of its nested column {chunk.path!r} may expand to {format_bytes(expanded_bytes)}; {remedy} "
            "row groups"
        )
