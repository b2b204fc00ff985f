"""A first look at a file is corrected by its later rows, and plain text is never taken for lack of anything else."""

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_files import json_lines, read, written

from data_pipeline.preparation.corpus_check import check
from data_pipeline.schema.corpus_config import CorpusConfig

ROWS = [f"row {number} of the corpus" for number in range(30)]


@pytest.mark.parametrize("name", ["corpus", "corpus.jsonl"])
@pytest.mark.parametrize("num_words", [100_000, 2_000_000])
def test_a_first_line_of_any_length_is_a_row_of_jsonl(tmp_path: Path, name: str, num_words: int) -> None:
    first = "word " * num_words + "end"
    found = read(written(tmp_path, json_lines(first, *ROWS), name))
    assert (found.kinds[0].format, found.texts) == ("jsonl", [first, *ROWS])


@pytest.mark.parametrize("name", ["corpus", "corpus.csv"])
@pytest.mark.parametrize("line_end", [" ", "\n"])
def test_a_first_cell_of_two_megabytes_is_a_cell(tmp_path: Path, name: str, line_end: str) -> None:
    cell = f"word{line_end}" * 400_000 + "end"
    data = f'text,label\n"{cell}",a\n' + "".join(f"{row},b\n" for row in ROWS)
    found = read(written(tmp_path, data, name))
    assert (found.kinds[0].format, found.texts) == ("csv", [cell, *ROWS])


def test_a_quote_open_for_twenty_megabytes_is_one_row(tmp_path: Path) -> None:
    cell = "many words on a line\n" * 1_000_000
    data = f'text,label\nfirst one,a\n"{cell}",a\nlast one,b\n'
    found = read(written(tmp_path, gzip.compress(data.encode(), 1), "corpus.csv.gz"))
    assert found.texts == ["first one", cell, "last one"]
    assert read(tmp_path / "corpus.csv.gz", longest_row="1MiB").rejects == [(3, "row too long")]


@pytest.mark.parametrize(
    ("text", "key", "early"),
    [
        ("prose", "prose", {"id": 1}),
        (None, "text", {"id": 1}),
        (None, "body", {"id": 1}),
        # The only text of the first rows is none beside a column called text.
        (None, "text", {"id": 1, "title": "a title"}),
    ],
)
@pytest.mark.parametrize("num_before", [61, 20_000])
@pytest.mark.parametrize("is_array", [False, True])
def test_a_column_of_later_rows_is_found_and_rows_without_it_are_rejected(
    tmp_path: Path, text: str | None, key: str, early: dict[str, Any], num_before: int, is_array: bool
) -> None:
    rows = [*[early] * num_before, *({"id": 2, key: row} for row in ROWS)]
    data = json.dumps(rows) if is_array else "".join(json.dumps(row) + "\n" for row in rows)
    found = read(written(tmp_path, data), text=text)
    assert found.texts == ROWS
    assert [reason for _, reason in found.rejects] == ["no text key"] * num_before


def test_a_key_called_text_inside_another_object_changes_nothing(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prose": row, "meta": {"text": "inner"}}) + "\n" for row in ROWS)
    assert read(written(tmp_path, rows)).texts == ROWS


ONE_OBJECT = {"text": "a 1"}
JSON = {
    "two arrays": ('[{"text": "a 1"}]\n[{"text": "b 2"}, {"text": "c 3"}]\n', ["a 1", "b 2", "c 3"], []),
    "objects without line ends": ('{"text": "a 1"}{"text": "b 2"} {"text": "c 3"}', ["a 1", "b 2", "c 3"], []),
    "commas behind lines": ('{"text": "a 1"},\n{"text": "b 2"},\n', ["a 1", "b 2"], []),
    "objects over lines": (json.dumps(ONE_OBJECT, indent=1) + "\n" + json.dumps(ONE_OBJECT, indent=1), ["a 1"] * 2, []),
    "prose behind an array": (
        '[{"text": "a 1"}]\nsome prose\n[{"text": "b 2"}]\n',
        ["a 1", "b 2"],
        [(2, "malformed JSON")],
    ),
    "values that are no rows": (
        '[1, {"text": "a 1"}, null, ["x"]]',
        ["a 1"],
        [(1, "JSON that is not an object")] * 3,
    ),
    "an array cut off": ('[{"text": "a 1"}, {"text": "b', ["a 1"], [(1, "malformed JSON")]),
    "a bracket too many": ('[{"text": "a 1"}]]\n', ["a 1"], [(1, "malformed JSON")]),
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("file_name", ["corpus", "corpus.json"])
@pytest.mark.parametrize("text", [None, "text"])
def test_every_value_of_json_is_a_row_or_a_reject(tmp_path: Path, name: str, file_name: str, text: str | None) -> None:
    data, texts, rejects = JSON[name]
    found = read(written(tmp_path, data, file_name), text=text)
    assert (found.kinds[0].refused, found.texts, found.rejects) == (None, texts, rejects)


@pytest.mark.parametrize("text", [None, "text"])
def test_arrays_as_lines_are_rows_that_are_no_objects(tmp_path: Path, text: str | None) -> None:
    data = "".join(f'["s{number} a", "s{number} b"]\n' for number in range(5))
    found = read(written(tmp_path, data, "corpus.jsonl"), text=text)
    assert found.rejects == [(line, "JSON that is not an object") for line in range(1, 6)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("[]", "an empty JSON array"),
        ("[ \n ]\n", "an empty JSON array"),
        ('{"text": "a 1"\n', "damaged JSON.*line 2, column 1"),
        ('{"text": "a 1",}\n', "damaged JSON.*line 1"),
        ('{"data": [{"text": "a"}]}', "set corpus.text to one of data"),
        ('"only a string"', "its name says JSON"),
    ],
)
def test_json_without_rows_is_refused_with_the_place(tmp_path: Path, data: str, words: str) -> None:
    (kind,) = read(written(tmp_path, data, "corpus.json")).kinds
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(kind.refused)


def table(delimiter: str, *, quote: str = '"', escape: str = "") -> str:
    sink = io.StringIO()
    how: dict[str, Any] = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    if escape:
        how |= {"escapechar": escape, "doublequote": False}
    writer = csv.writer(sink, delimiter=delimiter, lineterminator="\n", **how)
    writer.writerows([["id", "text"], *([str(number), text] for number, text in enumerate(cells(quote)))])
    return sink.getvalue()


def cells(quote: str) -> list[str]:
    said = f"row {{}} said {quote}hi{quote}, then; left|it" if quote else "row {} said hi then left"
    return [said.format(number) for number in range(30)]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "^", "~", "\x01", "\x1f"])
@pytest.mark.parametrize(("quote", "escape"), [('"', ""), ('"', "\\"), ("'", ""), ("", "")])
@pytest.mark.parametrize("name", ["corpus", "corpus.csv"])
def test_tables_are_read_with_any_delimiter_quote_and_escape(
    tmp_path: Path, delimiter: str, quote: str, escape: str, name: str
) -> None:
    path = written(tmp_path, table(delimiter, quote=quote, escape=escape), name)
    for said in ({}, {"delimiter": delimiter, "quote": quote, "escape": escape, "header": "first"}):
        found = read(path, **said)
        assert (found.kinds[0].format, found.texts, found.rejects) == ("csv", cells(quote), [])


@pytest.mark.parametrize("header", ["text,is it good?", "text,", "label (0/1)!,text", "text,100%?"])
@pytest.mark.parametrize("text", [None, "text"])
def test_a_header_that_names_the_text_is_one_whatever_else_is_in_it(
    tmp_path: Path, header: str, text: str | None
) -> None:
    is_first = header.startswith("text")
    lines = [f"{row},a" if is_first else f"a,{row}" for row in ROWS]
    assert read(written(tmp_path, "\n".join([header, *lines])), text=text).texts == ROWS


def test_a_table_without_header_is_read_by_number(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"{number},{row}\n" for number, row in enumerate(ROWS)), "corpus.csv")
    assert "corpus.header: none and the number of the column" in str(read(path).kinds[0].refused)
    assert read(path, header="none", text=2).texts == ROWS
    assert read(path, header="none").texts == ROWS
    assert "no column '3'; its columns are 1, 2" in str(read(path, header="none", text="3").kinds[0].refused)
    with pytest.raises(ValueError, match="give the number of the column"):
        CorpusConfig(path="x", header="none", text="text")


def test_a_header_alone_is_a_table_of_no_rows(tmp_path: Path) -> None:
    for name, text in (("corpus.csv", None), ("corpus", "text")):
        report = check(CorpusConfig(path=str(written(tmp_path, "text,label\n", name)), text=text))
        assert (report.files[0].format, report.rows_read) == ("csv", 0)
        assert "0 rows read" in str(report.problem)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "2 columns called 'text'" in str(read(written(tmp_path, "text,text\na b,c d\n" * 3)).kinds[0].refused)
    two = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(two, tmp_path / "two.parquet")
    assert "2 columns called 'text'" in str(read(tmp_path / "two.parquet").kinds[0].refused)


def test_the_only_column_of_texts_may_have_no_name(tmp_path: Path) -> None:
    assert read(written(tmp_path, ",n\n" + "".join(f"{row},1\n" for row in ROWS))).texts == ROWS


@pytest.mark.parametrize("name", ["messages", "conversations", "dialog"])
def test_a_table_of_conversations_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (kind,) = read(written(tmp_path, f"id,{name}\n" + "1,hello there\n" * 5)).kinds
    assert "a table of conversations" in str(kind.refused)


def test_plain_text_is_refused_where_a_column_is_asked_for(tmp_path: Path) -> None:
    (kind,) = read(written(tmp_path, "\n".join(ROWS)), text="text").kinds
    assert "it is plain text without columns" in str(kind.refused)


BYTES = [b"plain", "Zw\u00f6lf".encode(), b"\xff\xfe no", b"last"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())], ids=str)
def test_binary_columns_are_read_as_utf_8_and_rejected_by_row(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(BYTES).cast(kind)}), tmp_path / "corpus")
    found = read(tmp_path / "corpus")
    assert found.texts == ["plain", "Zw\u00f6lf", "last"]
    assert found.rejects == [(3, "bytes that are not of the file's encoding")]


def test_a_string_of_parquet_that_is_no_utf_8_costs_its_row_only(tmp_path: Path) -> None:
    strings = pa.StringArray.from_buffers(len(BYTES), *pa.array(BYTES).buffers()[1:])
    pq.write_table(pa.table({"text": strings}), tmp_path / "corpus")
    assert read(tmp_path / "corpus").rejects == [(3, "bytes that are not of the file's encoding")]


@pytest.mark.parametrize(
    "values", [[["a"], ["b"]], [1, 2], [1.5, 2.5], [{"a": "b"}, {"a": "c"}], [True, False], [b"ab", b"cd"]], ids=str
)
def test_values_that_are_no_text_are_rejected_and_never_written_as_text(tmp_path: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "corpus")
    found = read(tmp_path / "corpus", text="text")
    if isinstance(values[0], bytes):
        assert found.texts == ["ab", "cd"]
    else:
        assert (found.texts, found.rejects) == ([], [(1, "text is not a string"), (2, "text is not a string")])


@pytest.mark.parametrize("kind", [pa.date32(), pa.time32("s")], ids=str)
def test_dates_are_no_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array([1, 2], pa.int32()).cast(kind)}), tmp_path / "corpus")
    assert read(tmp_path / "corpus", text="text").rejects == [(row, "text is not a string") for row in (1, 2)]


@pytest.mark.parametrize(
    ("bad", "name"),
    [(b"caf\xe9 and more", "corpus.txt"), (b"\xff\xfe odd", "corpus.txt"), (b"\xe9\xe8 x \xff", "corpus.csv")],
)
@pytest.mark.parametrize("place", [0, 17])
def test_one_odd_line_is_rejected_and_decides_for_no_encoding(
    tmp_path: Path, bad: bytes, name: str, place: int
) -> None:
    lines = [row.encode() for row in [*ROWS, *ROWS]]
    lines.insert(place, bad)
    if name == "corpus.csv":
        lines = [b"text,label", *(line + b",a" for line in lines)]
    found = read(written(tmp_path, b"\n".join(lines), name))
    assert (found.kinds[0].encoding.name, found.texts) == ("utf-8", [*ROWS, *ROWS])
    assert found.rejects == [(place + 1 + (name == "corpus.csv"), "bytes that are not of the file's encoding")]


def test_damage_in_a_compressed_file_is_an_error_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    # Equal bytes in every process: some flips leave a stream that can be read to its end, with a wrong checksum alone.
    texts = [f"{row} {zlib.crc32(str(number).encode())}" for number, row in enumerate(ROWS * 20)]
    data = bytearray(gzip.compress(json_lines(*texts).encode()))
    data[len(data) // 2] ^= 0xFF
    path = written(tmp_path, bytes(data))
    report = check(CorpusConfig(path=str(path)))
    assert 0 < report.rows_kept < 600
    assert f"{report.rows_kept} rows before it are whole" in str(report.problem)
    kept = check(CorpusConfig(path=str(path), damaged="keep_what_is_whole"))
    assert (kept.problem, kept.rows_kept) == (None, report.rows_kept)
    assert kept.files[0].damage is not None


def test_tags_repetition_replaced_characters_and_guesses_are_said_and_reject_nothing(tmp_path: Path) -> None:
    page = written(
        tmp_path, "\n".join([*(f"<p>paragraph {n}</p>" for n in range(37)), *["plain line"] * 63]), "page.txt"
    )
    report = check(CorpusConfig(path=str(page)))
    assert report.files[0].notes == ("37% of the documents hold tags of HTML or XML",)
    assert (report.num_repeated, report.rows_rejected) == (62, 0)
    odd = written(tmp_path, "replaced \ufffd here\nprivate \ue000 here\nplain\n", "odd.txt")
    assert [note.split(" rows")[0] for note in check(CorpusConfig(path=str(odd))).files[0].notes] == ["1", "1"]
    guessed = written(tmp_path, "déjà vu\nà la mode\ncafé\n".encode("latin-1"), "guessed.txt")
    assert "latin-1, guessed from 3 lines" in check(CorpusConfig(path=str(guessed))).files[0].notes[0]
