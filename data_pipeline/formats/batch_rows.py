"""Rows of Arrow batches as plain values, a few at a time: texts of strings and of bytes, lists, structs, numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipeline.schema.rejects import Reason

_CONVERTED_BYTES = 16 << 20
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_VIEWS = (pa.string_view(), pa.binary_view())


def is_text_like(kind: Any) -> bool:
    """True for a type of Arrow whose values are texts or bytes, also as a dictionary."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return values in _TEXTS or values in _VIEWS


def rows_of(batch: Any, *, longest_row: int) -> Iterator[dict[str, Any] | Reason]:
    """Every row of a batch as plain values, or the reason for rejecting it. Bytes are read as UTF-8.

    Args:
        batch: `pyarrow.RecordBatch`.
        longest_row: Bytes of text in a row beyond which it is too long.
    """
    sizes = sum((_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    ends = np.cumsum(np.where(sizes > longest_row, 0, sizes))
    start = 0
    while start < batch.num_rows:
        if sizes[start] > longest_row:
            yield Reason.TOO_LONG
            start += 1
            continue
        given = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, given + _CONVERTED_BYTES, side="right")))
        too_long = np.flatnonzero(sizes[start:stop] > longest_row)
        stop = start + int(too_long[0]) if len(too_long) else stop
        yield from _plain_rows(batch.slice(start, stop - start))
        start = stop


def _plain_rows(batch: Any) -> Iterator[dict[str, Any] | Reason]:
    names = batch.schema.names
    for values in zip(*map(_plain_values, batch.columns), strict=True):
        bad = next((value for value in values if isinstance(value, Reason)), None)
        yield dict(zip(names, values, strict=True)) if bad is None else bad


def _plain_values(column: Any) -> list[Any]:
    """The values of a column; a reason in place of one that is no UTF-8."""
    # Written out, a dictionary of texts converts faster; nested ones stay.
    array = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    holds_bytes = _holds_bytes(array.type)
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        if not is_text_like(array.type):
            raise
        # A string that is no UTF-8: only its row is rejected.
        values, holds_bytes = array.cast(pa.large_binary()).to_pylist(), True
    return [_decoded_row(value) for value in values] if holds_bytes else values


def _holds_bytes(kind: Any) -> bool:
    return kind in _BYTES or any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))


def _decoded_row(value: Any) -> Any:
    try:
        return _decoded(value)
    except UnicodeDecodeError:
        return Reason.UNDECODABLE


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    if isinstance(value, dict):
        return {name: _decoded(one) for name, one in value.items()}
    return value


def _sizes(array: Any) -> NDArray[np.int64]:
    """(n,) bytes of text below each value of an array; 8 for values that are no text."""
    kind = array.type
    zeros = np.zeros(len(array), np.int64)
    if pa.types.is_dictionary(kind):
        sizes = _sizes(array.dictionary)
        return sizes[_integers(array.indices)] if len(sizes) else zeros
    if pa.types.is_struct(kind):
        return sum((_sizes(part) for part in array.flatten()), zeros)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        values = _sizes(array.keys) + _sizes(array.items) if pa.types.is_map(kind) else _sizes(array.values)
        ends = np.concatenate([[0], np.cumsum(values)])
        offsets = _integers(array.offsets)
        totals: NDArray[np.int64] = ends[offsets[1:]] - ends[offsets[:-1]]
        return totals
    if kind in _VIEWS:
        return _sizes(array.cast(pa.large_binary()))
    if kind in _TEXTS:
        return _integers(pc.binary_length(array))
    return zeros + 8


def _integers(array: Any) -> NDArray[np.int64]:
    integers: NDArray[np.int64] = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return integers
