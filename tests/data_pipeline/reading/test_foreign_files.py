"""Files that are no text: read where they can be, else refused by name; never read as lines."""

import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pytest
from canaries import OF_RAY, TEXTS, places
from written_files import json_lines, read, written

from data_pipeline.preparation.corpus_check import check
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError

ROWS = [f"row {number} of the corpus" for number in range(30)]


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


MEMBERS = {
    "a.jsonl": json_lines(*ROWS).encode(),
    "sub/b.csv": b"text,label\n" + b"a cell here,x\n" * 3,
    "sub/c.txt.gz": gzip.compress(b"prose in gzip\n"),
    "README.md": b"about it\n",
}
READ = [*ROWS, *["a cell here"] * 3, "prose in gzip"]


@pytest.mark.parametrize(
    "archived",
    [zipped, tarred, lambda members: gzip.compress(tarred(members)), lambda members: lzma.compress(tarred(members))],
    ids=["zip", "tar", "tar.gz", "tar.xz"],
)
def test_members_of_an_archive_are_files_of_the_corpus(
    tmp_path: Path, archived: Callable[[dict[str, bytes]], bytes]
) -> None:
    path = written(tmp_path, archived(MEMBERS), "archive")
    found = read(path)
    assert found.texts == READ
    assert [kind.path.removeprefix(str(tmp_path)) for kind in found.kinds] == [
        "/archive!/a.jsonl",
        "/archive!/sub/b.csv",
        "/archive!/sub/c.txt.gz",
    ]
    report = check(CorpusConfig(path=str(path)))
    assert (report.rows_kept, [one.why for one in report.passed_over]) == (len(READ), ["a README"])


@pytest.mark.parametrize("archived", [zipped, tarred])
def test_what_an_archive_holds_and_cannot_be_read_is_refused_by_name(
    tmp_path: Path, archived: Callable[[dict[str, bytes]], bytes]
) -> None:
    found = read(written(tmp_path, archived({"in.zip": zipped(MEMBERS), "a.jsonl": MEMBERS["a.jsonl"]})))
    assert found.texts == ROWS
    refused = [kind for kind in found.kinds if kind.refused]
    assert [Path(kind.path).name for kind in refused] == ["in.zip"]
    assert "archive inside another" in str(refused[0].refused)


def test_links_in_an_archive_are_never_followed(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo("link.jsonl")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
        info = tarfile.TarInfo("../a.jsonl")
        info.size = len(MEMBERS["a.jsonl"])
        archive.addfile(info, io.BytesIO(MEMBERS["a.jsonl"]))
    report = check(CorpusConfig(path=str(written(tmp_path, sink.getvalue()))))
    assert [one.why for one in report.passed_over] == ["a link inside an archive"]
    assert report.rows_kept == 30


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("archived", [zipped, tarred])
def test_an_archive_cut_off_is_refused_and_its_whole_members_are_counted(
    tmp_path: Path, archived: Callable[[dict[str, bytes]], bytes], share: float
) -> None:
    data = archived({f"{number}.txt": os.urandom(2000).hex().encode() + b"\n" for number in range(3)}).rstrip(b"\0")
    report = check(CorpusConfig(path=str(written(tmp_path, data[: int(share * len(data))]))))
    assert report.problem is not None
    assert report.rejects["whole file refused"] == 1


def test_a_damaged_member_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.jsonl": json_lines(*(os.urandom(30).hex() for _ in range(999))).encode()}))
    data[len(data) // 2] ^= 0xFF
    report = check(CorpusConfig(path=str(written(tmp_path, bytes(data)))))
    assert report.problem is not None
    assert "!/a.jsonl: archive stream ends in error" in report.problem
    assert report.rows_kept > 0


DOCUMENTS = {
    "a Word document": zipped({"[Content_Types].xml": b"x", "word/document.xml": b"x"}),
    "an Excel workbook": zipped({"xl/workbook.xml": b"x"}),
    "an EPUB book": zipped({"mimetype": b"x", "META-INF/container.xml": b"x"}),
    "a PDF document": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + b"stream\n" * 50,
    "an SQLite database": b"SQLite format 3\0" + bytes(200),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(50),
    "a RAR archive": b"Rar!\x1a\7\1\0" + bytes(50),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a Python pickle": b"\x80\x04\x95" + bytes(60),
    "a file compressed twice": gzip.compress(gzip.compress(MEMBERS["a.jsonl"])),
    "a page of HTML": b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
}
PICTURES = {
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + os.urandom(400),
    "a JPEG picture": b"\xff\xd8\xff\xe0\0\x10JFIF" + os.urandom(400),
    "a NumPy array": b"\x93NUMPY\x01\0" + os.urandom(400),
    "the weights of a model": (40).to_bytes(8, "little") + b'{"a": 1}' + bytes(100),
}


@pytest.mark.parametrize("name", [*DOCUMENTS, *PICTURES])
@pytest.mark.parametrize("file_name", ["corpus.jsonl", "corpus.csv"])
def test_a_foreign_format_is_refused_by_name_whatever_the_file_is_called(
    tmp_path: Path, name: str, file_name: str
) -> None:
    found = read(written(tmp_path, (DOCUMENTS | PICTURES)[name], file_name))
    assert found.texts == []
    assert f"it is {name}" in str(found.kinds[0].refused)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_in_a_folder_is_passed_over_and_named(tmp_path: Path, name: str) -> None:
    written(tmp_path, json_lines(*ROWS), "folder/a.jsonl")
    written(tmp_path, PICTURES[name], "folder/cover.txt")
    report = check(CorpusConfig(path=str(tmp_path / "folder")))
    assert (report.rows_kept, report.rows_rejected, report.problem) == (30, 0, None)
    assert [(Path(one.path).name, one.why) for one in report.passed_over] == [("cover.txt", name)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_in_a_folder_counts_as_a_reject(tmp_path: Path, name: str) -> None:
    written(tmp_path, json_lines(*ROWS), "folder/a.jsonl")
    written(tmp_path, DOCUMENTS[name], "folder/b.jsonl")
    report = check(CorpusConfig(path=str(tmp_path / "folder")))
    assert (report.rows_kept, report.rejects) == (30, {"whole file refused": 1})


def saved_data_set(folder: Path, texts: list[str]) -> None:
    """As `datasets.Dataset.save_to_disk` writes it."""
    table = pa.table({"text": texts, "n": range(len(texts))})
    folder.mkdir(parents=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as to,
    ):
        to.write_table(table, max_chunksize=7)
    written(folder, json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}), "state.json")
    written(folder, json.dumps({"features": {}}), "dataset_info.json")


def test_a_saved_data_set_is_read_with_its_splits_as_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved_data_set(tmp_path / "set" / split, [f"{split} {row}" for row in ROWS])
    written(tmp_path, json.dumps({"splits": ["train", "test"]}), "set/dataset_dict.json")
    found = read(tmp_path / "set")
    assert found.texts == [f"{split} {row}" for split in ("test", "train") for row in ROWS]
    assert {kind.format for kind in found.kinds} == {"arrow"}
    assert read(tmp_path / "set/train").texts == [f"train {row}" for row in ROWS]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_arrow_files_are_read_whatever_type_their_texts_have(
    tmp_path: Path, kind: pa.DataType, compression: str | None
) -> None:
    texts = [*ROWS, None]
    column = pa.array(texts).cast(pa.binary()) if kind == pa.binary() else pa.array(texts).cast(kind)
    table = pa.table({"text": column})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(tmp_path / "corpus"), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as to:
        to.write_table(table, max_chunksize=11)
    found = read(tmp_path / "corpus")
    assert (found.texts, found.rejects) == (ROWS, [(31, "empty text")])


def test_a_feather_file_cut_off_keeps_its_rows_before_and_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{number} {os.urandom(20).hex()}" for number in range(3000)]})
    feather.write_feather(table, str(tmp_path / "whole"), chunksize=100, compression="uncompressed")
    data = (tmp_path / "whole").read_bytes()
    report = check(CorpusConfig(path=str(written(tmp_path, data[: len(data) // 2]))))
    assert report.rows_kept % 100 == 0
    assert 0 < report.rows_kept < 3000
    assert "1 of 1 files are damaged" in str(report.problem)


def test_any_byte_of_an_arrow_file_may_be_wrong_and_it_is_read_or_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    table = pa.table({"text": ROWS[:4]})
    with pa.ipc.new_stream(sink, table.schema) as to:
        to.write_table(table)
    whole = sink.getvalue()
    for place in range(0, len(whole), 3):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        report = check(CorpusConfig(path=str(written(tmp_path, damaged, "corpus.arrow"))))
        assert report.rows_read == report.rows_kept + report.rows_rejected


def test_a_compressed_batch_that_expands_too_far_is_refused_before_it_is_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a" * (260 << 20)]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(tmp_path / "bomb"), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as to:
        to.write_table(table)
    assert (tmp_path / "bomb").stat().st_size < 1 << 20
    assert "one of its batches holds 260" in str(read(tmp_path / "bomb", longest_row="1MiB").kinds[0].refused)


@pytest.mark.parametrize("place", sorted(places(Path("unused"))))
@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])
def test_an_extension_type_in_arrow_is_refused_wherever_it_stands(
    tmp_path: Path, place: str, make: Callable[..., Any]
) -> None:
    field, array = places(tmp_path / "fired")[place]
    schema = pa.schema([pa.field("text", pa.string()), field])
    sink = io.BytesIO()
    with make(sink, schema) as to:
        to.write_table(pa.Table.from_arrays([pa.array(TEXTS), array], schema=schema))
    found = read(written(tmp_path, sink.getvalue()), text="text")
    assert f"({OF_RAY})" in str(found.kinds[0].refused)
    assert found.texts == []
    assert not (tmp_path / "fired").exists()


def test_the_cache_of_the_hub_is_read_by_its_current_snapshot(tmp_path: Path) -> None:
    written(tmp_path, json_lines(*ROWS), "datasets--a--b/blobs/1234")
    written(tmp_path, json_lines("old"), "datasets--a--b/blobs/0000")
    written(tmp_path, "new\n", "datasets--a--b/refs/main")
    for revision, blob in (("new", "1234"), ("old", "0000")):
        (tmp_path / "datasets--a--b/snapshots" / revision).mkdir(parents=True)
        (tmp_path / "datasets--a--b/snapshots" / revision / "a.jsonl").symlink_to(f"../../blobs/{blob}")
    assert read(tmp_path / "datasets--a--b").texts == ROWS
    assert read(tmp_path / "datasets--a--b/snapshots/old").texts == ["old"]


def test_pipes_devices_and_links_to_nothing_are_named(tmp_path: Path) -> None:
    written(tmp_path, json_lines(*ROWS), "folder/a.jsonl")
    os.mkfifo(tmp_path / "folder/pipe.jsonl")
    (tmp_path / "folder/dangling.jsonl").symlink_to("nowhere")
    (tmp_path / "folder/circle.jsonl").symlink_to("circle.jsonl")
    found = find_files(CorpusConfig(path=str(tmp_path / "folder")))
    assert {Path(one.path).name: one.why for one in found.passed_over} == {
        "pipe.jsonl": "a pipe, a socket or a device",
        "dangling.jsonl": "a link to nothing",
        "circle.jsonl": "a link in a circle",
    }
    with pytest.raises(CorpusError, match="is a pipe, a socket or a device"):
        find_files(CorpusConfig(path=str(tmp_path / "folder/pipe.jsonl")))


@pytest.mark.parametrize("name", [b"a::b.jsonl", b"we[ird]*?.jsonl", b"no utf-8 \xff.jsonl", b"new\nline.jsonl"])
def test_a_file_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(json_lines(*ROWS).encode() + b"{damaged\n")
    report = check(CorpusConfig(path=str(path), max_rejected=0.5))
    assert (report.rows_kept, report.problem) == (30, None)
    json.dumps([file.model_dump_json() for file in report.files]).encode()
    json.dumps(report.first_rejects, ensure_ascii=False).encode()
    assert check(CorpusConfig(path=str(tmp_path))).rows_kept == 30


def test_a_link_that_git_wrote_as_text_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path, json_lines(*ROWS), "folder/a.jsonl")
    written(tmp_path, "../other", "folder/sub")
    written(tmp_path, json_lines("b"), "other/b.jsonl")
    report = check(CorpusConfig(path=str(tmp_path / "folder")))
    assert (report.rows_kept, [Path(one.path).name for one in report.passed_over]) == (30, ["sub"])


@pytest.mark.parametrize("change", ["grows", "shrinks", "vanishes"])
@pytest.mark.parametrize("suffix", ["jsonl", "arrow"])
def test_a_file_that_changes_while_it_is_read_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, suffix: str
) -> None:
    path = written(tmp_path, json_lines(*ROWS), f"corpus.{suffix}")
    if suffix == "arrow":
        feather.write_feather(pa.table({"text": ROWS}), str(path))

    def changed(*arguments: object, **named: object) -> object:
        data = path.read_bytes()
        examined = examine(*arguments, **named)  # type: ignore[arg-type]
        path.unlink() if change == "vanishes" else path.write_bytes(data * 2 if change == "grows" else data[:200])
        return examined

    from data_pipeline.preparation import corpus_check

    examine = corpus_check.examine_files
    monkeypatch.setattr(corpus_check, "examine_files", changed)
    with pytest.raises(CorpusError, match=rf"corpus\.{suffix} .*run the same command again"):
        check(CorpusConfig(path=str(path)))
