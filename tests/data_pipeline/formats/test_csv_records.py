import csv
import io
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_files import REAL_DATA, needs_real_data, read, written

from data_pipeline.formats.csv_records import Dialect, csv_records, end_of_last_record

CELL = st.text(st.sampled_from('ab ",;\n漢'), max_size=8)


def table(rows: list[list[str]]) -> bytes:
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows(rows)
    return sink.getvalue().encode()


@given(rows=st.lists(st.lists(CELL, min_size=2, max_size=3), min_size=1, max_size=6))
def test_records_are_those_that_the_csv_module_wrote(rows: list[list[str]]) -> None:
    found = [record.fields for record in csv_records(table(rows), Dialect(), first_line=1)]
    assert found == [[cell.encode() for cell in row] for row in rows]


@given(rows=st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6), cut=st.integers(0, 60))
def test_buffer_is_only_cut_between_records(rows: list[list[str]], cut: int) -> None:
    data = table(rows)
    end = end_of_last_record(data[:cut], Dialect())
    parts = [*csv_records(data[:end], Dialect(), first_line=1), *csv_records(data[end:], Dialect(), first_line=1)]
    assert [record.fields for record in parts] == [
        record.fields for record in csv_records(data, Dialect(), first_line=1)
    ]


def test_numbers_stay_text_with_their_leading_zeros(tmp_path: Path) -> None:
    found = read(written(tmp_path, "id,text\n1,00123\n2,1e5\n3,NaN\n4,0x1F\n"))
    assert found.texts == ["00123", "1e5", "NaN", "0x1F"]


def test_quoted_line_end_does_not_end_a_row(tmp_path: Path) -> None:
    found = read(written(tmp_path, 'id,text\n1,"two\nlines"\n2,"said ""so"""\n3,plain\n4,"a,b"\n'))
    assert found.texts == ["two\nlines", 'said "so"', "plain", "a,b"]


def test_quote_that_is_not_closed_costs_its_own_line(tmp_path: Path) -> None:
    lines = ["id,text", "1,good one", '2,"never closed', "3,good two", '4,"closed"', "5,good three"]
    found = read(written(tmp_path, "\n".join(lines)))
    assert found.texts == ["good one", "good two", "closed", "good three"]
    assert found.rejects == [(3, "quote that is not closed")]


def test_row_with_other_fields_than_the_header_is_rejected_by_its_first_line(tmp_path: Path) -> None:
    found = read(written(tmp_path, 'id,text\n1,"a\nb"\n2,c,d\n3\n4,e\n'))
    assert (found.texts, found.rejects) == (
        ["a\nb", "e"],
        [(4, "other number of fields than the header"), (5, "other number of fields than the header")],
    )


def test_repeated_header_is_rejected(tmp_path: Path) -> None:
    found = read(written(tmp_path, "id,text\n1,a\nid,text\n2,b\n"))
    assert (found.texts, found.rejects) == (["a", "b"], [(3, "header repeated")])


def test_shard_without_header_takes_that_of_its_neighbour(tmp_path: Path) -> None:
    first = written(tmp_path, "id,text,label\n1,one word,x\n2,two words,y\n3,more words,z\n", "part-0")
    second = written(tmp_path, "4,four words,x\n5,five words,y\n6,six words,z\n", "part-1")
    assert read(first, second).texts == ["one word", "two words", "more words", "four words", "five words", "six words"]


def test_shard_with_columns_in_another_order_is_read_by_name(tmp_path: Path) -> None:
    first = written(tmp_path, "id,text\n1,one word\n2,two words\n", "part-0")
    second = written(tmp_path, "text,id\nthree words,3\nfour words,4\n", "part-1")
    assert read(first, second).texts == ["one word", "two words", "three words", "four words"]


def test_shard_without_the_text_column_is_refused_whole(tmp_path: Path) -> None:
    first = written(tmp_path, "id,text\n1,one word\n2,two words\n", "part-0")
    second = written(tmp_path, "id,label,size\n3,x,1\n4,y,2\n", "part-1")
    found = read(first, second)
    assert found.texts == ["one word", "two words"]
    assert "id, label, size" in str(found.kinds[1].refused)


def test_table_of_one_column_needs_only_its_header(tmp_path: Path) -> None:
    found = read(written(tmp_path, "text\nfirst row\nsecond row\n"))
    assert (found.kinds[0].format, found.texts) == ("csv", ["first row", "second row"])


def test_cell_that_cannot_be_decoded_rejects_its_row(tmp_path: Path) -> None:
    rows = ["id,text", *(f"{n},crème brûlée" for n in range(20))]
    found = read(written(tmp_path, "\n".join(rows).encode().replace(b"\n7,cr\xc3\xa8me", b"\n7,cr\xe8me")))
    assert (len(found.texts), found.rejects) == (19, [(9, "bytes that are not of the file's encoding")])


def test_carriage_return_inside_quotes_is_text(tmp_path: Path) -> None:
    assert read(written(tmp_path, b'id,text\r\n1,"a\rb\r\nc"\r\n2,d\r\n')).texts == ["a\rb\r\nc", "d"]


def test_table_without_header_and_without_neighbour_is_refused(tmp_path: Path) -> None:
    found = read(written(tmp_path, "1,one word,x\n2,two words,y\n3,three words,z\n"))
    assert "no header to say which of its 3 columns is the text" in str(found.kinds[0].refused)


def test_many_quotes_that_are_never_closed_take_linear_time() -> None:
    def taken_s(row: bytes) -> float:
        started_at = time.process_time()
        assert len(list(csv_records(row * 20_000, Dialect(), first_line=1))) == 20_000
        return time.process_time() - started_at

    # Set beside rows whose quotes are closed, which take twice as long on any processor. A scan to the end for each
    # quote would take minutes.
    closed_s, open_s = (min(taken_s(row) for _ in range(3)) for row in (b'1,"open"\n', b'1,"open\n'))
    assert open_s < 4 * closed_s


@needs_real_data
@pytest.mark.parametrize("piece_bytes", [10_000, 1 << 20])
def test_empty_cells_of_the_traffic_corpus_are_rejected_and_counted(piece_bytes: int) -> None:
    found = read(REAL_DATA / "traffic_ndpi/payloads_with_empty_cells.csv", piece_bytes=piece_bytes)
    assert len(found.texts) == 6338 - 2009
    assert [reason for _, reason in found.rejects] == ["empty text"] * 2009


@needs_real_data
def test_rows_of_the_traffic_corpus_are_those_that_the_csv_module_reads() -> None:
    with (REAL_DATA / "traffic_ndpi/packets.csv").open(newline="") as file:
        expected = [row["text"] for row in csv.DictReader(file)]
    assert read(REAL_DATA / "traffic_ndpi/packets.csv").texts == expected
