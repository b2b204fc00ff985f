"""Text made to take long: the work of reading it grows with its size and no faster."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_values import BYTES
from hypothesis import given, settings
from hypothesis import strategies as st
from written_files import corpus_of, read, written

from data_pipeline.files.plain_json import DEEPEST_JSON, is_nested_too_deep, parse_json, parse_object
from data_pipeline.formats import json_arrays
from data_pipeline.formats.json_arrays import array_elements
from data_pipeline.reading import pieces
from data_pipeline.reading.table_rows import columns_of, open_table, table_rows
from data_pipeline.schema.corpus_config import CorpusError
from patience import HANGS_AFTER_S

# Each of n characters or a little more.
ARRAYS: dict[str, Callable[[int], str]] = {
    "malformed elements": lambda n: "[" + '{"a"},' * (n // 6),
    "malformed elements on lines": lambda n: "[" + '\n{"a"},' * (n // 7),
    "open objects": lambda n: "[" + "{" * n,
    "open arrays": lambda n: "[" + "[" * n,
    "nested objects": lambda n: "[" + '{"a":' * (n // 5),
    "elements within each other": lambda n: "[" + '{"a":[{},' * (n // 9),
    "long elements within each other": lambda n: "[" + ('{"a":["' + "s" * 991 + '",{},') * (n // 1000),
    "one fault behind many beginnings": lambda n: (
        "[" + ('{"a":[{},' * 450 + '{"k":"' + "s" * 60_000 + '"!') * (n >> 16)
    ),
    "open string": lambda n: '["' + "a" * n,
    "escapes": lambda n: '["' + '\\"' * (n // 2),
    "spaces before a fault": lambda n: '[{"a":1}' + (" " * 999 + "}") * (n // 1000),
    "digits": lambda n: "[" + ("1" * 4999 + ",") * (n // 5000),
    "ordinary": lambda n: json.dumps([{"text": "word " * 10}] * (n // 60)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_of_twice_the_size_is_looked_at_twice_as_often(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = _CountingDecoder()
    monkeypatch.setattr(json_arrays, "_DECODER", decoder)
    looks = []
    for size in (1 << 18, 1 << 19):
        text = ARRAYS[name](size)
        before = decoder.num_characters
        for element in array_elements(
            iter([text[at : at + 4096] for at in range(0, len(text), 4096)]), longest=1 << 30
        ):
            assert element.text
        looks.append(decoder.num_characters - before)
    # An array that grows with the square is looked at four times as often. The first megabyte of looks is free.
    assert looks[1] < 2.6 * looks[0] + (1 << 20), looks


class _CountingDecoder(json.JSONDecoder):
    num_characters = 0

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        self.num_characters += len(s) - idx
        return super().raw_decode(s, idx)


@pytest.mark.parametrize(
    ("beginning", "choices"),
    [
        (b"a", {}),
        (b"a", {"documents": "paragraphs"}),
        (b"a", {"documents": "files"}),
        (b'text,b\n"', {"format": "csv"}),
        (b"text,b\n", {"format": "csv"}),
    ],
)
@pytest.mark.parametrize("repeated", [b"a", b"a \n"])
def test_row_of_twice_the_size_is_searched_for_its_end_twice_as_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes, choices: dict[str, Any], repeated: bytes
) -> None:
    searched = []
    cut = pieces._cut

    def counting_cut(buffer: bytearray, start: int, unit: Any, kind: Any) -> int:
        searched[-1] += len(buffer) - (0 if unit == "record" else start)
        return cut(buffer, start, unit, kind)

    monkeypatch.setattr(pieces, "_cut", counting_cut)
    monkeypatch.setattr(pieces, "_READ_BYTES", 1 << 12)
    for size in (1 << 19, 1 << 20):
        searched.append(0)
        corpus = corpus_of(written(tmp_path, beginning + repeated * (size // len(repeated))), **choices)
        for piece in pieces.pieces_of(corpus.files[0], corpus.config, file=0, piece_bytes=1 << 12):
            assert piece.data
    assert searched[1] < 2.6 * searched[0] + (1 << 14), searched


_READ_ALL = """
import sys
from pathlib import Path
from data_pipeline.reading import file_formats
from written_files import read

file_formats._HEAD_BYTES = 1 << 30
for path in sorted(Path(sys.argv[1]).iterdir()):
    found = read(path)
    print(path.name, found.kinds[0].format, flush=True)
"""


@pytest.mark.long
def test_text_that_would_take_hours_in_quadratic_time_is_read(tmp_path: Path) -> None:
    n = 1 << 20
    texts = {
        "brace and line feeds": "{" + "\n" * n,
        "brace and lines of a space": "{" + " \n" * (n // 2),
        "carriage returns": "\r" * n,
        "carriage returns before a line": "\r" * n + "x\n",
        "carriage returns in a table": 'text,b\n"a",b' + "\r" * n + "x\n",
        "spaces": " " * n,
        "key and spaces": '{\n"a"' + " " * n,
        "bracket and spaces": "[" + " " * n,
        "bracket and commas": "[" + "," * n,
        "string and spaces": '["a"' + " " * n,
        "delimiters": "text;b\n" + ";" * n,
        "quotes": "text,b\n" + '"' * n,
        "open quotes": "text,b\n" + '"a\n' * (n // 3),
        "quotes on lines": "text,b\n" + '"""\n' * (n // 4),
        "byte order marks": "\ufeff" * (n // 3),
        "key given again and again": '{"text":"a"}\n{' + ",".join(['"text":"a"'] * (n // 11)) + "}",
    }
    for name, text in texts.items():
        written(tmp_path, text, name)
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _READ_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
        env={"PYTHONPATH": f"{tests}:{tests.parents[1]}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(texts)


@pytest.mark.parametrize("depth", [DEEPEST_JSON - 2, DEEPEST_JSON - 1, DEEPEST_JSON, 990, 100_000])
def test_row_nested_deeply_with_a_key_given_twice_is_rejected(tmp_path: Path, depth: int) -> None:
    row = '{"text": "a", "text": "b", "x": ' + "[" * depth + "]" * depth + "}"
    found = read(written(tmp_path, '{"text": "c"}\n' + row + "\n"))
    reason = "text key given twice" if depth < DEEPEST_JSON else "JSON nested too deep"
    assert (found.texts, found.rejects) == (["c"], [(2, reason)])


def test_number_of_too_many_digits_costs_its_row_only(tmp_path: Path) -> None:
    bad = '{"text": "a", "n": ' + "1" * 5000 + "}"
    good = '{"text": "b"}'
    assert read(written(tmp_path, f"{good}\n{bad}\n{good}")).rejects == [(2, "malformed JSON")]
    found = read(written(tmp_path, f"[{good},\n{bad},\n{good}]"))
    assert (found.texts, found.rejects) == (["b", "b"], [(2, "malformed JSON")])


@given(st.text(alphabet='[]{}"\\a', max_size=60))
def test_brackets_in_strings_are_no_nesting(text: str) -> None:
    assert not is_nested_too_deep(json.dumps([text * 500]))
    assert is_nested_too_deep("[" * DEEPEST_JSON + json.dumps([text]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested"),
        (b"[" * 501 + b"]" * 501, "nested"),
        ("1" * 5000, "digits"),
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        (b"\xff", "decode"),
    ],
)
def test_any_fault_of_json_is_a_value_error(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "1e400", '"a"'])
def test_json_that_is_no_object_is_refused_where_one_is_needed(text: str) -> None:
    with pytest.raises(ValueError, match="not an object"):
        parse_object(text)


MARKS = [
    *'{}[],:;"\\\t\r\n \0',
    "text",
    '"text": "a"',
    '{"text": "a"}\n',
    "id,text\n",
    '""',
    "1e400",
    "\ufeff",
    "\ud800",
]
CONTENTS = st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=40).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(["text", "id"]),
        "encoding": st.sampled_from(["utf-8", "utf-16", "gb18030", "latin-1"]),
        "documents": st.sampled_from(["lines", "paragraphs", "files"]),
        "longest_row": st.integers(1, 100),
    },
)


def read_and_expect_only_our_errors(folder: Path, contents: bytes, **choices: Any) -> None:
    file = written(folder, contents)
    with suppress(CorpusError):
        read(file, piece_bytes=20, **choices)
    with suppress(CorpusError):
        table = open_table(str(file), text=None)
        for row in table_rows(table, columns_of(table)):
            assert row.text


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "auto"])
@settings(max_examples=50, derandomize=True)
@given(contents=CONTENTS | BYTES, choices=CHOICES)
def test_random_rows_give_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, form: str, contents: bytes, choices: dict[str, Any]
) -> None:
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), contents, format=form, **choices)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "txt", "auto"])
@settings(max_examples=10_000)
@given(contents=CONTENTS | BYTES, choices=CHOICES)
def test_any_rows_give_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, form: str, contents: bytes, choices: dict[str, Any]
) -> None:
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), contents, format=form, **choices)
