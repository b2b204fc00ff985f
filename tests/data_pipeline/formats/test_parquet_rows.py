import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_files import read, written

from data_pipeline.formats.parquet_rows import pages_refused, parquet_rows

MIB = 1 << 20
TEXTS = [None if n % 11 == 0 else "text " * (n % 50) for n in range(3000)]
TURNS = [[{"role": "user", "content": text, "tags": ["a"]} for text in TEXTS[n : n + n % 5]] for n in range(999)]
TURNS_OR_NONE = [turns if n % 7 else None for n, turns in enumerate(TURNS)]
WRITERS: list[dict[str, Any]] = [
    {},
    {"use_dictionary": False},
    {"data_page_version": "2.0"},
    {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    {"row_group_size": 700, "data_page_size": 500, "compression": "zstd"},
    {"compression": "none", "store_schema": False},
]


def parquet(values: Any, **writer: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": values, "other": list(range(len(values)))}), stream, **writer)
    return stream


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_encoding_of_texts_gives_the_rows_that_were_written(kind: Any, writer: dict[str, Any]) -> None:
    rows = parquet_rows(parquet(pa.array(TEXTS, kind), **writer), ["text"], longest_row=MIB)
    assert list(rows) == [{"text": text} for text in TEXTS]


@pytest.mark.parametrize("writer", [writer for writer in WRITERS if "column_encoding" not in writer])
def test_nested_values_come_back_as_they_were_written(writer: dict[str, Any]) -> None:
    rows = parquet_rows(parquet(pa.array(TURNS_OR_NONE), **writer), ["text"], longest_row=MIB)
    assert list(rows) == [{"text": turns} for turns in TURNS_OR_NONE]


@pytest.mark.parametrize(
    ("values", "writer"),
    [
        (["a" * (3 * MIB)], {"use_dictionary": False}),
        (["a" * MIB + str(n) for n in range(3)], {"use_dictionary": False}),
        (["a" * MIB + str(n) for n in range(3)], {}),
    ],
    ids=["one value", "several values", "a dictionary"],
)
def test_file_whose_pages_expand_too_far_is_refused_with_the_way_to_read_it(
    tmp_path: Path, values: list[str], writer: dict[str, Any]
) -> None:
    stream = parquet(values, compression="zstd", **writer)
    refused = pages_refused(stream, ["text"], longest_row=2 * MIB)
    assert refused is not None
    assert "page of its column 'text' expands to 3.00 MiB; raise corpus.longest_row, now 2.00 MiB" in refused
    found = read(written(tmp_path, stream.getvalue()), longest_row="2MiB")
    assert (found.kinds[0].refused, found.texts) == (refused, [])
    assert read(written(tmp_path, stream.getvalue())).texts == values


def test_row_that_names_one_text_again_and_again_is_too_long(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 601), ["a" * (MIB - 9)])
    stream = parquet(pa.ListArray.from_arrays([0, 600, 601], text))
    (first, second) = parquet_rows(stream, ["text"], longest_row=256 * MIB)
    assert first == "row too long"
    assert second == {"text": ["a" * (MIB - 9)]}


def test_damaged_page_costs_the_rows_behind_it_and_is_counted(tmp_path: Path) -> None:
    data = bytearray(parquet([f"text {n}" for n in range(9000)], compression="zstd", row_group_size=3000).getvalue())
    column = pq.read_metadata(io.BytesIO(data)).row_group(1).column(0)
    frame = data.index(b"\x28\xb5\x2f\xfd", column.dictionary_page_offset)
    data[frame : frame + 4] = b"none"
    found = read(written(tmp_path, bytes(data)))
    assert found.texts == [f"text {n}" for n in range(3000)]
    assert found.rejects == [(3001, "compressed file damaged from here on")]


class CountedReads(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data


def test_a_file_of_twice_the_row_groups_is_read_twice_as_much() -> None:
    num_read = []
    for num_groups in (100, 200):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": ["a"] * num_groups}), sink, row_group_size=1)
        stream = CountedReads(sink.getvalue().to_pybytes())
        assert list(parquet_rows(stream, ["text"], longest_row=100)) == [{"text": "a"}] * num_groups
        num_read.append(stream.num_read)
    # The footer lists the row groups: read again for each of them, four times as many bytes.
    assert num_read[1] < 2.2 * num_read[0]
