"""Tables of FlatBuffers, read without trust in their offsets: the headers of Arrow's messages are such tables."""

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlatTable:
    """One table in a buffer. Every method raises ValueError where an offset leads out of the buffer."""

    data: bytes
    position: int

    @classmethod
    def root(cls, data: bytes) -> "FlatTable":
        """The outermost table of a buffer."""
        return cls(data, _number("<I", data, 0))

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """A scalar of the format `kind` (of the module struct)."""
        place = self._place(field)
        return default if place is None else _number(kind, self.data, place)

    def table(self, field: int) -> "FlatTable | None":
        """An inner table; None if there is none."""
        place = self._place(field)
        return None if place is None else FlatTable(self.data, place + _number("<I", self.data, place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        place = self._place(field)
        if place is None:
            return []
        start = place + _number("<I", self.data, place)
        count = _number("<I", self.data, start)
        numbers = self.data[start + 4 : start + 4 + 16 * count]
        if len(numbers) < 16 * count:
            raise ValueError("a header of an Arrow message is damaged")
        return list(struct.iter_unpack("<qq", numbers))

    def _place(self, field: int) -> int | None:
        index = self.position - _number("<i", self.data, self.position)
        if 4 + 2 * field >= _number("<H", self.data, index):
            return None
        offset = _number("<H", self.data, index + 4 + 2 * field)
        return self.position + offset if offset else None


def _number(kind: str, data: bytes, position: int) -> int:
    if position < 0:
        raise ValueError("a header of an Arrow message is damaged")
    try:
        (number,) = struct.unpack_from(kind, data, position)
    except struct.error as cause:
        raise ValueError("a header of an Arrow message is damaged") from cause
    return int(number)
