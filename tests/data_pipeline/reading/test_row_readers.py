import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from written_files import corpus_of, json_lines, read, written

from data_pipeline.reading import pieces
from data_pipeline.reading.pieces import pieces_of

# Characters that people have lost rows to: separators of several kinds, quotes, NUL aside (it is rejected).
AWKWARD = st.text(st.sampled_from('ab ",;\t\u2028\u2029\x85\x0b\x0c\x1c{}[]\\漢é😀<s>'), max_size=30).filter(str.strip)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r\r\n", "\r"])
@pytest.mark.parametrize("make", ["txt", "jsonl", "csv"])
def test_every_kind_of_line_end_gives_the_same_rows(tmp_path: Path, line_end: str, make: str) -> None:
    lines = {
        "txt": ["one line", "two lines", "three"],
        "jsonl": json_lines("one line", "two lines", "three").splitlines(),
        "csv": ["id,text", "1,one line", "2,two lines", "3,three"],
    }[make]
    found = read(written(tmp_path, line_end.join(lines) + line_end))
    assert (found.texts, found.rejects) == (["one line", "two lines", "three"], [])


def test_line_separator_inside_json_does_not_end_a_row(tmp_path: Path) -> None:
    texts = ["a\u2028b\u2029c\x85d", "next"]
    assert read(written(tmp_path, json_lines(*texts))).texts == texts


HOSTILE_JSON = [
    ('{"text": "\\ud800 alone"}', "half a surrogate pair in the text"),
    ('{"text": "a\\u0000b"}', "NUL byte in the text"),
    ('{"text": "cut off', "malformed JSON"),
    ('{"text": "raw \t tab"}', "malformed JSON"),
    ('"only a string"', "JSON that is not an object"),
    ("[1, 2]", "JSON that is not an object"),
    ('{"body": "x"}', "no text key"),
    ('{"text": 123}', "text is not a string"),
    ('{"text": ["a"]}', "text is not a string"),
    ('{"text": null}', "empty text"),
    ('{"text": "  "}', "empty text"),
    ('{"text": "a", "text": "b"}', "text key given twice"),
    ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "JSON nested too deep"),
]


@pytest.mark.parametrize(("row", "reason"), HOSTILE_JSON, ids=[reason for _, reason in HOSTILE_JSON])
def test_hostile_json_row_is_rejected_with_its_line_and_costs_no_other(tmp_path: Path, row: str, reason: str) -> None:
    lines = [*json_lines("one", "two").splitlines(), row, *json_lines("three", "four").splitlines()]
    found = read(written(tmp_path, "\n".join(lines)))
    assert (found.texts, found.rejects) == (["one", "two", "three", "four"], [(3, reason)])


def test_text_key_inside_another_object_is_not_given_twice(tmp_path: Path) -> None:
    row = json.dumps({"text": "outer", "meta": {"text": "inner"}})
    assert read(written(tmp_path, row)).texts == ["outer"]


def test_line_of_two_megabytes_is_one_row(tmp_path: Path) -> None:
    long = "word " * 400_000
    assert read(written(tmp_path, json_lines("a", long, "b")), piece_bytes=1000).texts == ["a", long, "b"]


@pytest.mark.parametrize(
    ("documents", "rows", "line"),
    [("lines", ["a", "long " * 300, "b", "c"], 2), ("paragraphs", ["a\na", "long\n" * 300, "b\nb", "c"], 4)],
)
def test_row_that_does_not_fit_in_memory_is_rejected_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str, rows: list[str], line: int
) -> None:
    monkeypatch.setattr(pieces, "_READ_BYTES", 7)
    between = "\n" if documents == "lines" else "\n\n"
    settings = {"documents": documents, "format": "txt", "longest_row": 1000}
    found = read(written(tmp_path, between.join(rows)), piece_bytes=1, **settings)
    assert (found.texts, found.rejects) == ([rows[0], *rows[2:]], [(line, "row too long")])
    last = read(written(tmp_path, between.join([*rows[2:], rows[1]])), piece_bytes=1, **settings)
    assert (last.texts, [reason for _, reason in last.rejects]) == (rows[2:], ["row too long"])


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    found = read(written(tmp_path, "\n" + json_lines("a").replace("\n", "\n\n  \n") + json_lines("b")))
    assert (found.texts, found.rejects, found.num_blank_lines) == (["a", "b"], [], 3)


def test_json_array_with_a_broken_element_keeps_the_others(tmp_path: Path) -> None:
    data = '[\n{"text": "a"},\n{"text": "b" "c"},\n{"text": "d"},\n7,\n{"text": "e"}\n]'
    found = read(written(tmp_path, data))
    assert found.texts == ["a", "d", "e"]
    assert found.rejects == [(3, "malformed JSON"), (5, "JSON that is not an object")]


def test_nesting_too_deep_in_a_json_array_costs_its_element_only(tmp_path: Path) -> None:
    deep = '{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    found = read(written(tmp_path, '[\n{"text": "b"},\n' + deep + ',\n{"text": "c"}\n]'))
    assert (found.texts, found.rejects) == (["b", "c"], [(3, "JSON nested too deep")])


def test_json_array_that_is_cut_off_rejects_its_last_element(tmp_path: Path) -> None:
    found = read(written(tmp_path, '[{"text": "a"},\n{"text": "b"},\n{"text": "c'))
    assert (found.texts, found.rejects) == (["a", "b"], [(3, "malformed JSON")])


@given(texts=st.lists(AWKWARD, min_size=1, max_size=8), piece=st.integers(1, 60))
def test_any_text_comes_back_from_jsonl_and_json_arrays(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], piece: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    assert read(written(folder, json_lines(*texts)), piece_bytes=piece).texts == texts
    array = json.dumps([{"text": text} for text in texts], indent=1)
    assert read(written(folder, array), format="json", piece_bytes=piece).texts == texts


ELEMENTS = st.sampled_from(
    [
        '{"text": "a"}',
        '{"text": "b" "c"}',
        '{"text": "d}, {"}',
        "7",
        "-1.5e3",
        "null",
        '{"text": "\\ud83d\\ude00"}',
        "[[[",
    ]
)


@given(elements=st.lists(ELEMENTS, max_size=8), between=st.sampled_from([",", ",\n", " ,\n\n"]), size=st.integers(1, 9))
@example(elements=["7", "{"], between=",", size=2)
def test_rows_of_a_json_array_do_not_depend_on_how_much_is_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, elements: list[str], between: str, size: int
) -> None:
    path = written(tmp_path_factory.mktemp("rows"), f"[{between.join(elements)}]")
    whole = read(path, format="json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_READ_BYTES", size)
        assert read(path, format="json") == whole


def test_json_array_is_never_whole_in_memory(tmp_path: Path) -> None:
    num_bytes = 8 << 20
    row = '{"text": "' + "word " * 200 + '"}'
    path = written(tmp_path, "[" + ",\n".join([row] * (num_bytes // len(row))) + "]")
    corpus = corpus_of(path, format="json")
    tracemalloc.start()
    pieces = pieces_of(corpus.files[0], corpus.config, file=0, piece_bytes=1 << 19)
    num_rows = sum(len(piece.lines or ()) for piece in pieces)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == num_bytes // len(row)
    # Two readings of 1 MiB, once as bytes and once as text, and a piece.
    assert peak_bytes < 6 << 20


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path) -> None:
    data = "one\ntwo\n\n\nthree\r\n \t\r\nfour\nfive"
    found = read(written(tmp_path, data), documents="paragraphs", piece_bytes=4)
    assert found.texts == ["one\ntwo", "three", "four\nfive"]


def test_whole_file_is_one_document_with_plain_line_ends(tmp_path: Path) -> None:
    found = read(written(tmp_path, "one\r\r\ntwo\r\n\r\nthree"), documents="files", piece_bytes=4)
    assert found.texts == ["one\ntwo\n\nthree"]


def test_nul_in_a_text_file_rejects_its_line(tmp_path: Path) -> None:
    found = read(written(tmp_path, "good line number one\nb\0d\n" + "another good line\n" * 20))
    assert (len(found.texts), found.rejects) == (21, [(2, "NUL byte in the text")])


@given(lines=st.lists(st.text(st.sampled_from("ab \t漢"), max_size=6), max_size=30), piece=st.integers(1, 20))
def test_where_a_file_is_cut_changes_no_row_and_no_line_number(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], piece: int
) -> None:
    rows = [json.dumps({"text": line}, ensure_ascii=False) if n % 3 else line for n, line in enumerate(lines)]
    path = written(tmp_path_factory.mktemp("cut"), "\n".join([*json_lines("x", "y", "z", "w").splitlines(), *rows]))
    whole, cut = read(path, format="jsonl"), read(path, format="jsonl", piece_bytes=piece)
    assert (cut.texts, cut.rejects, cut.num_blank_lines) == (whole.texts, whole.rejects, whole.num_blank_lines)
