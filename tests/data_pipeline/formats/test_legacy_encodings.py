"""Encodings before Unicode are told from their bytes, said to be guesses, or refused."""

import sys
from pathlib import Path

import pytest
from written_files import corpus_of, read, written

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from encodings_told import CASES, SENTENCES

TOLD = [(encoding, language) for encoding, language in CASES if language in SENTENCES]


@pytest.mark.parametrize(("encoding", "language"), TOLD)
def test_a_text_comes_back_in_whatever_encoding_it_was_written(tmp_path: Path, encoding: str, language: str) -> None:
    lines = SENTENCES[language].replace("。", "。\n").replace(". ", ".\n").splitlines()
    lines = [line for line in lines if line.encode(encoding, "ignore").decode(encoding) == line]
    assert len(lines) >= 4
    found = read(written(tmp_path, "\n".join(lines).encode(encoding)))
    assert found.texts == lines


def test_a_guess_is_said_as_one_with_its_lines(tmp_path: Path) -> None:
    (kind,) = corpus_of(written(tmp_path, "déjà vu\nà la mode\nplain\ncafé\n".encode("latin-1"))).files
    assert (kind.encoding.name, kind.encoding.note) == ("latin-1", "guessed from 3 lines")


def test_an_encoding_that_cannot_be_told_is_refused_with_the_setting_that_says_it(tmp_path: Path) -> None:
    hebrew = "שלום עולם\nאיפה תחנת הרכבת\nתודה רבה\nערב טוב\n"
    path = written(tmp_path, hebrew.encode("cp1255"))
    assert "set corpus.encoding" in str(corpus_of(path).files[0].refused)
    assert read(path, encoding="cp1255").texts == hebrew.splitlines()


def test_four_byte_characters_of_gb18030_are_no_single_bytes(tmp_path: Path) -> None:
    lines = ["𠀀𠀁㐀㐁𠀂𠀃", "普通的一行文字", "㐂㐃"] * 10
    found = read(written(tmp_path, "\n".join(lines).encode("gb18030")))
    assert (found.kinds[0].encoding.name, found.texts) == ("gb18030", lines)


def test_all_lines_decide_not_the_first_megabyte(tmp_path: Path) -> None:
    first = ["Zwölf Boxkämpfer über den Deich"] * 40_000
    found = read(written(tmp_path, "\n".join(first).encode() + b"\ncaf\xe9 au lait"))
    assert found.kinds[0].encoding.name == "utf-8"
    assert (len(found.texts), found.rejects) == (40_000, [(40_001, "bytes that are not of the file's encoding")])


def test_a_line_of_megabytes_is_judged_between_its_characters(tmp_path: Path) -> None:
    text = "漢字とかな" * 300_000
    assert read(written(tmp_path, text)).texts == [text]
