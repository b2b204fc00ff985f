"""Headers of the pages of a Parquet file, read without decompressing a page.

Arrow does not show them. They are structs in Thrift's compact protocol.

Sources: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_HEADER_BYTES = 1 << 12
_LONGEST_HEADER_BYTES = 16 << 20
_DEEPEST_STRUCT = 8

_PAGE_BYTES, _COMPRESSED_BYTES = 2, 3
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 5, 7, 8
_NUM_VALUES = 1
_ENCODING = {_DATA_PAGE: 2, _DATA_PAGE_V2: 4}
_DELTA_BYTE_ARRAY = 7

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)


@dataclass(frozen=True, slots=True)
class Page:
    """Sizes of one page."""

    num_bytes: int
    """After decompression."""
    num_values: int
    is_dictionary: bool
    shares_prefixes: bool
    """Values are encoded as a prefix of the value before and a rest."""


def page_headers(stream: IO[bytes], column: Any) -> Iterator[Page]:
    """The pages of a column in one row group, in order.

    Args:
        stream: A seekable Parquet file.
        column: `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        ValueError: A header is damaged.
    """
    if column.num_values == 0:
        return
    starts = (column.dictionary_page_offset, column.data_page_offset)
    position = min(start for start in starts if start is not None and start >= 0)
    stop = position + column.total_compressed_size
    while position < stop:
        header, num_header_bytes = _header_at(stream, position)
        kind = next((kind for kind in (_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2) if kind in header), 0)
        details = header.get(kind, {})
        if not isinstance(details, dict):
            raise ValueError(f"the page header at byte {position:,} is damaged")
        num_bytes, num_compressed_bytes = header.get(_PAGE_BYTES), header.get(_COMPRESSED_BYTES)
        num_values = details.get(_NUM_VALUES, 0)
        sizes = [size for size in (num_bytes, num_compressed_bytes, num_values) if isinstance(size, int) and size >= 0]
        if len(sizes) != 3:
            raise ValueError(f"the page header at byte {position:,} has no sizes")
        yield Page(
            num_bytes=sizes[0],
            num_values=sizes[2],
            is_dictionary=kind == _DICTIONARY_PAGE,
            shares_prefixes=details.get(_ENCODING.get(kind)) == _DELTA_BYTE_ARRAY,
        )
        position += num_header_bytes + sizes[1]


def _header_at(stream: IO[bytes], position: int) -> tuple[dict[int, Any], int]:
    """The fields of a header by number, and its length in bytes."""
    size = _HEADER_BYTES
    while True:
        stream.seek(position)
        data = stream.read(size)
        try:
            reader = _CompactReader(data)
            return reader.struct(), reader.position
        except IndexError:
            # Statistics may make a header long.
            if len(data) < size or size >= _LONGEST_HEADER_BYTES:
                raise ValueError(f"the page header at byte {position:,} has no end") from None
            size *= 8


class _CompactReader:
    """Reads structs of Thrift's compact protocol; raises IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct by number; those that are no numbers or structs are None."""
        if depth > _DEEPEST_STRUCT:
            raise ValueError("a page header is nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while kind_byte := self._byte():
            step = kind_byte >> 4
            number = number + step if step else self._integer()
            fields[number] = self._value(kind_byte & 15, depth)
        return fields

    def _value(self, kind: int, depth: int, *, is_in_list: bool = False) -> Any:
        if kind in (_TRUE, _FALSE):
            return self._byte() if is_in_list else kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind in (_LIST, _SET):
            size_and_kind = self._byte()
            size = size_and_kind >> 4
            for _ in range(size if size < 15 else self._varint()):
                self._value(size_and_kind & 15, depth + 1, is_in_list=True)
        else:
            raise ValueError(f"a page header has a field of the unknown kind {kind}")
        return None

    def _byte(self) -> int:
        byte = self._data[self.position]
        self.position += 1
        return byte

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page header has a number of too many bytes")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
