import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from written_files import REAL_DATA, json_lines, needs_real_data, read, written

from data_pipeline.schema.corpus_config import CorpusConfig

PROSE = ["First, a line with a comma.", "Then another; with a semicolon.", "And a third."]


def test_jsonl_under_the_name_of_a_text_file_is_jsonl(tmp_path: Path) -> None:
    found = read(written(tmp_path, json_lines(*PROSE), "corpus.txt"))
    assert (found.kinds[0].format, found.texts) == ("jsonl", PROSE)


@pytest.mark.parametrize("suffix", ["csv", "tsv.gz", "jsonl", "json", "parquet", "arrow", "feather"])
def test_prose_under_the_name_of_data_is_refused_and_read_where_format_says_so(tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path, "\n".join(PROSE), f"corpus.{suffix}")
    found = read(file)
    assert found.texts == []
    assert "set corpus.format: txt" in str(found.kinds[0].refused)
    assert read(file, format="txt").texts == PROSE


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_delimiter_of_a_table_is_told_by_its_content(tmp_path: Path, delimiter: str) -> None:
    rows = [
        delimiter.join(cells) for cells in (["id", "text"], ["1", "one word"], ["2", "two words"], ["3", "and more"])
    ]
    found = read(written(tmp_path, "\n".join(rows), "corpus.json"))
    assert (found.kinds[0].delimiter, found.texts) == (delimiter, ["one word", "two words", "and more"])


@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_is_read_element_by_element(tmp_path: Path, indent: int | None) -> None:
    found = read(written(tmp_path, json.dumps([{"text": text} for text in PROSE], indent=indent)))
    assert (found.kinds[0].format, found.texts, found.rejects) == ("json", PROSE, [])


def test_parquet_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "text": [*PROSE, None]}), tmp_path / "corpus.txt")
    found = read(tmp_path / "corpus.txt")
    assert (found.kinds[0].format, found.texts, found.rejects) == ("parquet", PROSE, [(4, "empty text")])


def test_parquet_of_dialogues_is_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    pq.write_table(pa.table({"conversations": [turns, turns]}), tmp_path / "corpus")
    assert read(tmp_path / "corpus").texts == ["<s>user\nhello</s>\n<s>assistant\nhi</s>"] * 2


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lz4": partial(pa.compress, codec="lz4", asbytes=True),
    "zstd": zstandard.ZstdCompressor().compress,
    "gzip of several members": lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:]),
    "zstd of several frames": lambda data: (
        zstandard.ZstdCompressor().compress(data[:20]) + zstandard.ZstdCompressor().compress(data[20:])
    ),
}


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus"])
def test_compression_is_told_by_content_whatever_the_suffix(tmp_path: Path, compressor: str, name: str) -> None:
    found = read(written(tmp_path, COMPRESSORS[compressor](json_lines(*PROSE).encode()), name))
    assert found.texts == PROSE


def test_suffix_of_a_compression_makes_no_compressed_file(tmp_path: Path) -> None:
    assert read(written(tmp_path, json_lines(*PROSE), "corpus.jsonl.gz")).texts == PROSE


def table(delimiter: str) -> str:
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter).writerows([["id", "text"], *([str(n), text] for n, text in enumerate(PROSE))])
    return sink.getvalue()


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


# Format as the report calls it, the bytes of a file, and settings that say more than bytes can.
FORMATS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "jsonl": ("jsonl", json_lines(*PROSE).encode(), {}),
    "json array": ("json", json.dumps([{"text": text} for text in PROSE]).encode(), {}),
    "csv": ("csv", table(",").encode(), {}),
    "tsv": ("tsv", table("\t").encode(), {}),
    "csv with ;": ("csv with ;", table(";").encode(), {}),
    "lines": ("txt", "\n".join(PROSE).encode(), {}),
    "paragraphs": ("txt", "\n\n".join(PROSE).encode(), {"documents": "paragraphs"}),
    "files": ("txt", "\n".join(PROSE).encode(), {"documents": "files"}),
    "parquet": ("parquet", parquet(PROSE), {}),
}


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("made", FORMATS)
def test_every_format_is_read_through_every_compression(tmp_path: Path, made: str, compressor: str) -> None:
    name, data, settings = FORMATS[made]
    found = read(written(tmp_path, COMPRESSORS[compressor](data)), **settings)
    assert found.kinds[0].format_in_words == name
    assert found.texts == (["\n".join(PROSE)] if made == "files" else PROSE)
    assert found.rejects == []


@pytest.mark.parametrize("compressor", ["gzip", "zstd"])
def test_compressed_file_cut_off_keeps_what_came_before_and_says_so(tmp_path: Path, compressor: str) -> None:
    # Text that does not compress, so that some of it lies before the cut.
    texts = [codecs.encode(bytes(range(n % 200, n % 200 + 50)), "hex").decode() + str(n * 7919) for n in range(20_000)]
    data = COMPRESSORS[compressor](json_lines(*texts).encode())
    found = read(written(tmp_path, data[: len(data) // 2]))
    assert found.kinds[0].damage is not None
    assert 0 < len(found.texts) < len(texts)
    assert found.texts == texts[: len(found.texts)]
    assert found.rejects == []


@pytest.mark.parametrize("compressor", ["gzip", "bzip2"])
def test_rows_before_what_is_no_compressed_data_are_kept_to_the_last(tmp_path: Path, compressor: str) -> None:
    data = COMPRESSORS[compressor](json_lines(*PROSE).encode()) + b"appended by somebody"
    found = read(written(tmp_path, data))
    assert (found.texts, found.rejects) == (PROSE, [])


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_of_every_arrow_type_are_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "prose": pa.array(PROSE).cast(kind)}), tmp_path / "corpus")
    assert read(tmp_path / "corpus").texts == PROSE


def test_parquet_cut_off_inside_a_compressed_file_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(parquet([f"{text} {n}" for text in PROSE for n in range(1000)]))
    assert "cannot be read" in str(read(written(tmp_path, data[: len(data) // 2])).kinds[0].refused)


def test_array_of_strings_is_a_row_a_string(tmp_path: Path) -> None:
    found = read(written(tmp_path, json.dumps([*PROSE[:2], 7, PROSE[2]], indent=1)))
    assert (found.texts, found.rejects) == (PROSE, [(4, "text is not a string")])


@pytest.mark.parametrize("prose", ["[Illustration]", '["Go," he said]', "{not json", "[1] Smith, J."])
def test_prose_that_begins_like_json_is_prose(tmp_path: Path, prose: str) -> None:
    assert read(written(tmp_path, f"{prose}\n{PROSE[0]}")).texts == [prose, PROSE[0]]


def test_one_object_over_many_lines_is_not_read_as_prose(tmp_path: Path) -> None:
    labels = json.dumps({str(n): f"label {n}" for n in range(20)}, indent=1)
    assert "set corpus.text to one of 0, 1, 2" in str(read(written(tmp_path, labels)).kinds[0].refused)


def test_bytes_that_are_no_text_are_refused_whole(tmp_path: Path) -> None:
    assert "neither text nor Parquet" in str(read(written(tmp_path, bytes(range(256)) + bytes(4000))).kinds[0].refused)


def test_column_that_is_not_there_refuses_the_file_and_names_those_that_are(tmp_path: Path) -> None:
    found = read(written(tmp_path, json_lines("a", "b")), text="body")
    assert "no column 'body'; its columns are text" in str(found.kinds[0].refused)


def test_only_column_that_can_be_text_is_taken(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": n, "story_in_english": f"story {n}"}) + "\n" for n in range(3))
    assert read(written(tmp_path, rows)).texts == ["story 0", "story 1", "story 2"]


def test_two_columns_that_can_be_text_are_not_guessed_between(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"left": f"one {n}", "right": f"two {n}"}) + "\n" for n in range(3))
    assert "set corpus.text to one of left, right" in str(read(written(tmp_path, rows)).kinds[0].refused)


UNICODE = ["Zwölf Boxkämpfer", "naïve café", "“quoted” — dash", "漢字とかな"]


@pytest.mark.parametrize(
    ("encoding", "bom", "name"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", codecs.BOM_UTF8, "utf-8"),
        ("utf-16-le", codecs.BOM_UTF16_LE, "utf-16-le"),
        ("utf-16-be", codecs.BOM_UTF16_BE, "utf-16-be"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-32-le", codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_unicode_encodings_are_found(tmp_path: Path, encoding: str, bom: bytes, name: str) -> None:
    found = read(written(tmp_path, bom + "\n".join(UNICODE).encode(encoding)))
    assert (found.kinds[0].encoding.name, found.texts) == (name, UNICODE)


def test_latin_1_is_found(tmp_path: Path) -> None:
    texts = ["Le café est à côté", "où la forêt brûle", "déjà vu"] * 10
    found = read(written(tmp_path, "\n".join(texts).encode("latin-1")))
    assert (found.kinds[0].encoding.name, found.texts) == ("latin-1", texts)


ENCODED = ["Le café est à côté", "où la forêt brûle", "déjà vu, crème brûlée"] * 10


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1", "gb18030"])
@pytest.mark.parametrize("make", ["jsonl", "json", "csv", "tsv", "txt"])
def test_every_text_format_is_read_in_every_encoding(tmp_path: Path, make: str, encoding: str) -> None:
    texts = [f"{text}。这是第{n}行中文" for n, text in enumerate(PROSE * 9)] if encoding == "gb18030" else ENCODED
    made = {
        "jsonl": json_lines(*texts),
        "json": json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1),
        "csv": "id,text\r\n" + "".join(f'{n},"{text}"\r\n' for n, text in enumerate(texts)),
        "tsv": "id\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(texts)),
        "txt": "\n".join(texts),
    }[make]
    found = read(written(tmp_path, made.encode(encoding)))
    assert (found.texts, found.rejects) == (texts, [])


def test_chinese_in_utf_16_is_found_without_a_byte_order_mark(tmp_path: Path) -> None:
    texts = ["第一行中文文字在此", "秦川雄帝宅，函谷壮皇居。"] * 100
    assert read(written(tmp_path, "\n".join(texts).encode("utf-16-le"))).texts == texts


def test_gbk_is_found_in_chinese_jsonl(tmp_path: Path) -> None:
    texts = ["帝京篇十首", "秦川雄帝宅，函谷壮皇居。", "绮殿千寻起，离宫百雉余。"] * 5
    found = read(written(tmp_path, json_lines(*texts).encode("gbk")))
    assert (found.kinds[0].encoding.name, found.texts) == ("gb18030", texts)


def test_encoding_is_told_by_lines_far_behind_an_ascii_beginning(tmp_path: Path) -> None:
    ascii_lines = ["plain ascii"] * 200_000
    found = read(written(tmp_path, "\n".join([*ascii_lines, "第一行中文文字在此", "第二行"]).encode("gbk")))
    assert found.texts[-2:] == ["第一行中文文字在此", "第二行"]


def test_byte_that_cannot_be_decoded_rejects_its_row_and_no_other(tmp_path: Path) -> None:
    rows = [json_lines(text).encode() for text in UNICODE]
    rows[1] = rows[1].replace(b"caf\xc3\xa9", b"caf\xe9")
    found = read(written(tmp_path, b"".join(rows)))
    assert found.kinds[0].encoding.name == "utf-8"
    assert found.texts == [UNICODE[0], *UNICODE[2:]]
    assert found.rejects == [(2, "bytes that are not of the file's encoding")]


def test_surrogate_without_its_half_in_utf_16_rejects_its_row_and_no_other(tmp_path: Path) -> None:
    data = "good\nb?d\nalso good\n".encode("utf-16-le").replace("?".encode("utf-16-le"), b"\x00\xd8")
    found = read(written(tmp_path, codecs.BOM_UTF16_LE + data))
    assert (found.texts, found.rejects) == (["good", "also good"], [(2, "bytes that are not of the file's encoding")])


def test_half_a_character_at_the_end_of_utf_16_rejects_its_row(tmp_path: Path) -> None:
    found = read(written(tmp_path, "good\nlast".encode("utf-16") + b"!"))
    assert (found.texts, found.rejects) == (["good"], [(2, "bytes that are not of the file's encoding")])


def test_number_that_is_no_character_in_utf_32_rejects_its_row_and_no_other(tmp_path: Path) -> None:
    found = read(written(tmp_path, "good\n".encode("utf-32") + b"\xff\xff\xff\xff" + "bad\nmore".encode("utf-32-le")))
    assert (found.texts, found.rejects) == (["good", "more"], [(2, "bytes that are not of the file's encoding")])


def test_lone_surrogates_as_bytes_are_damage_and_no_other_encoding(tmp_path: Path) -> None:
    found = read(written(tmp_path, b"\xed\xa0\x80 alone\nplain\n" * 3))
    assert found.kinds[0].encoding.name == "utf-8"
    assert found.texts == ["plain"] * 3
    assert found.rejects == [(line, "bytes that are not of the file's encoding") for line in (1, 3, 5)]


@pytest.mark.parametrize(
    ("said", "written_in"),
    [
        *[(name, name) for name in ("cp850", "UTF8", "utf-8-sig", "latin1", "gbk", "gb2312", "utf-16", "utf-16-be")],
        *[("utf-8", "utf-8-sig"), ("utf-16", "utf-16-le"), ("utf-32", "utf-32")],
    ],
)
def test_encoding_that_is_said_is_not_guessed(tmp_path: Path, said: str, written_in: str) -> None:
    texts = ["第一行", "第二行"] if said.startswith("gb") else ["déjà vu", "à la mode"]
    found = read(written(tmp_path, "\n".join(texts).encode(written_in)), encoding=said)
    assert (found.texts, found.kinds[0].encoding.note) == (texts, "set in corpus.encoding")


def test_encoding_that_there_is_not_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ValueError, match="not an encoding that Python knows"):
        CorpusConfig(path="x", encoding="utf-9")


@needs_real_data
def test_gbk_book_with_double_carriage_returns_equals_its_utf_8_reference() -> None:
    book = read(REAL_DATA / "kant/gbk_crcrlf_book.txt")
    reference = read(REAL_DATA / "kant/gbk_crcrlf_book.utf8_reference.txt")
    assert book.kinds[0].encoding.name == "gb18030"
    assert book.texts == reference.texts
    assert book.num_blank_lines == reference.num_blank_lines
    assert (len(book.texts), book.rejects) == (11_012, [])


@needs_real_data
def test_latin_1_book_with_crlf_is_read_without_carriage_returns() -> None:
    found = read(REAL_DATA / "english/ulysses_latin1_crlf_raw.txt")
    assert found.kinds[0].encoding.name == "latin-1"
    assert not any("\r" in text for text in found.texts)
    assert any("deshabillé" in text for text in found.texts)
    assert found.rejects == []
