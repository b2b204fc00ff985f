"""Every file of the real corpora, against what Python's own readers find in it."""

import csv
import json
import re
from pathlib import Path

import pytest
from written_files import REAL_DATA, needs_real_data, read

from data_pipeline.preparation.corpus_check import check
from data_pipeline.schema.corpus_config import CorpusConfig

pytestmark = needs_real_data


def lines_of(path: Path, encoding: str) -> list[str]:
    return [line for line in re.split(r"\r*\n", path.read_bytes().decode(encoding)) if line.strip()]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("kant/kant.txt", "utf-8"),
        ("kant/gbk_crcrlf_book.txt", "gbk"),
        ("kant/gbk_crcrlf_book.utf8_reference.txt", "utf-8"),
        ("english/books/bleak_house.txt", "utf-8"),
        ("english/books/david_copperfield.txt", "utf-8"),
        ("english/books/moby_dick.txt", "utf-8"),
        ("english/books/war_and_peace.txt", "utf-8"),
        ("english/tinyshakespeare.txt", "utf-8"),
        ("english/ulysses_latin1_crlf_raw.txt", "latin-1"),
    ],
)
def test_every_line_of_a_book_is_a_row(name: str, encoding: str) -> None:
    found = read(REAL_DATA / name)
    assert found.texts == lines_of(REAL_DATA / name, encoding)
    assert found.rejects == []


@pytest.mark.parametrize(
    ("name", "num_rows"), [("chinese/poems_minimind.jsonl", 6981), ("chinese/tf_docs_zh.jsonl", 6181)]
)
def test_every_line_of_chinese_json_is_a_row(name: str, num_rows: int) -> None:
    found = read(REAL_DATA / name)
    assert found.texts == [json.loads(line)["text"] for line in (REAL_DATA / name).open(encoding="utf-8")]
    assert (len(found.texts), found.rejects) == (num_rows, [])


def test_every_flow_of_the_traffic_corpus_is_a_row() -> None:
    with (REAL_DATA / "traffic_ndpi/flows_etbert.tsv").open(newline="") as file:
        expected = [row["text_a"] for row in csv.DictReader(file, delimiter="\t")]
    found = read(REAL_DATA / "traffic_ndpi/flows_etbert.tsv")
    assert (found.texts, found.kinds[0].text_column) == (expected, "text_a")
    assert len(expected) == 2092


def test_folder_of_tables_and_labels_says_of_each_file_what_became_of_it() -> None:
    report = check(CorpusConfig(path=str(REAL_DATA / "traffic_ndpi"), max_rejected="20%"))
    became = {Path(file.path).name: (file.format, file.rows_kept, file.rows_rejected) for file in report.files}
    assert became == {
        "flows_etbert.tsv": ("tsv", 2092, 0),
        "flows_etbert_labels.json": ("json", 0, 1),
        "packets.csv": ("csv", 10_523, 0),
        "payloads_with_empty_cells.csv": ("csv", 6338 - 2009, 2009),
    }
    assert [(Path(item.path).name, item.why) for item in report.passed_over] == [("README.md", "a README")]
    assert report.problem is None
    assert report.rows_read == report.rows_kept + report.rows_rejected
    # Three examples of empty cells and the whole of the labels: no reason is hidden behind a commoner one.
    assert sorted(reject["reason"] for reject in report.first_rejects) == [*["empty text"] * 3, "whole file refused"]
