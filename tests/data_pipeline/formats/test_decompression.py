import bz2
import gzip
import io
import lzma
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from written_files import json_lines, read, written

from data_pipeline.formats.decompression import (
    Compression,
    ExpandsTooFarError,
    compression_of,
    decompress,
    most_plain_bytes,
)
from data_pipeline.preparation.corpus_check import check
from data_pipeline.reading import corpus_files
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from patience import HANGS_AFTER_S

MIB = 1 << 20
COMPRESSORS: dict[Compression, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "lz4": partial(pa.compress, codec="lz4", asbytes=True),
}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("size", [7, 1000, MIB])
def test_no_read_gives_more_than_asked_for(compression: Compression, size: int) -> None:
    text = bytes(MIB // 8) + b"text " * 99 + bytes(MIB // 8)
    data = COMPRESSORS[compression](text) * 2
    assert compression_of(data) == compression
    stream = decompress(io.BytesIO(data), compression, most_bytes=MIB)
    given = []
    while piece := stream.read(size):
        assert len(piece) <= size
        given.append(piece)
    assert b"".join(given) == text * 2


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_stream_ends_in_an_error_at_its_limit_that_says_how_to_raise_it(compression: Compression) -> None:
    data = COMPRESSORS[compression](bytes(MIB))
    exact = decompress(io.BytesIO(data), compression, most_bytes=MIB)
    while exact.read(1000):
        pass
    stream = decompress(io.BytesIO(data), compression, most_bytes=MIB - 1)
    with pytest.raises(ExpandsTooFarError, match=r"corpus\.expands_to: 4\.00MiB"):
        list(iter(lambda: stream.read(1000), b""))


def test_limit_without_a_setting_is_the_larger_of_64_gib_and_200_times_the_file() -> None:
    assert most_plain_bytes(1, None) == 64 << 30
    assert most_plain_bytes(1 << 30, None) == 200 << 30
    assert most_plain_bytes(1 << 30, 5) == 5


def test_frame_of_zstd_that_wants_more_memory_than_a_reader_has_is_damage(tmp_path: Path) -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    found = read(written(tmp_path, compressor.compress(json_lines("a", "b").encode()) + compressor.flush()))
    assert found.texts == []
    assert found.kinds[0].damage is not None
    assert "memory" in found.kinds[0].damage


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_file_that_expands_too_far_is_refused_and_named_and_costs_no_other(
    tmp_path: Path, compression: Compression
) -> None:
    written(tmp_path, COMPRESSORS[compression](json_lines("far too much").encode() * 999), "bomb")
    written(tmp_path, json_lines("good", *map(str, range(200))), "good")
    report = check(CorpusConfig(path=str(tmp_path), expands_to="20KB", max_rejected="80%"))
    assert (report.rows_kept, report.rejects, report.problem) == (201, {"whole file refused": 1}, None)
    assert report.first_rejects[0]["file"].endswith("bomb")
    refused = report.files[0].refused
    assert refused is not None
    assert "set corpus.expands_to: 78.12KiB" in refused


def test_compressed_parquet_is_not_unpacked_where_there_is_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), plain)
    file = written(tmp_path, gzip.compress(plain.getvalue()))
    assert read(file).texts == ["a", "b"]
    monkeypatch.setattr(corpus_files, "_SHARE_OF_FREE_SPACE", 0.0)
    with pytest.raises(CorpusError, match=rf"{file} is compressed and needs .* set TMPDIR"):
        read(file)


def test_file_as_a_document_is_rejected_where_it_is_too_long(tmp_path: Path) -> None:
    files = [written(tmp_path, text, name) for name, text in (("a", "short"), ("b", "long\n" * 300), ("c", "more"))]
    found = read(*files, documents="files", format="txt", longest_row="1KB")
    assert (found.texts, found.rejects) == (["short", "more"], [(1, "row too long")])


@pytest.mark.parametrize(
    ("data", "settings", "line"),
    [
        (json_lines("a", "long " * 300, "b"), {}, 2),
        ("text\na\n" + '"' + "long\n" * 300 + '"\nb\n', {"format": "csv"}, 3),
        ('[{"text": "a"},\n{"text": "' + "long " * 300 + '"},\n{"text": "b"}]', {}, 2),
        ('[{"text": "a"},\n{"text": "' + "long " * 99_000 + '"},\n{"text": "b"}]', {}, 2),
        ("a\n" + "long " * 300 + "\nb\n", {}, 2),
    ],
    ids=["jsonl", "csv", "json array", "json array over several reads", "lines"],
)
def test_row_longer_than_longest_row_is_rejected_with_its_line_in_every_format(
    tmp_path: Path, data: str, settings: dict[str, Any], line: int
) -> None:
    found = read(written(tmp_path, data), longest_row="1KB", **settings)
    assert (found.texts, found.rejects) == (["a", "b"], [(line, "row too long")])


_MEASURE = """
import resource, sys
from pathlib import Path
from data_pipeline.reading.pieces import pieces_of
from data_pipeline.reading.row_readers import read_piece
from written_files import corpus_of, json_lines, read, written

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder = Path(sys.argv[1])
read(written(folder, json_lines("a", "b"), "first"))
before = peak_mib()
for path in sorted(folder.glob("bomb-*")):
    corpus = corpus_of(path, longest_row="1MiB", documents="files" if "files" in path.name else "lines")
    num_rows = 0
    for piece in pieces_of(corpus.files[0], corpus.config, file=0, piece_bytes=1 << 20):
        num_rows += read_piece(piece, corpus.files[0], corpus.config, corpus.template).num_rows
    print(path.name, num_rows, peak_mib() - before)
"""


@pytest.mark.long
def test_memory_of_reading_does_not_grow_with_what_a_file_expands_to(tmp_path: Path) -> None:
    # The promise is 256 MiB beyond the row. A quarter of it, held here, lets the files be small.
    most_mib, expanded_mib = 64, 96
    beginnings = {"line": b"a", "files": b"text", "csv": b'text\n"', "array": b'[{"text": "a"},\n{"text": "'}
    for compression, compress in COMPRESSORS.items():
        # Members or frames one after another are one file.
        expanded = compress(b"a" * MIB) * expanded_mib
        for name in beginnings if compression == "zstd" else ("line",):
            written(tmp_path, compress(beginnings[name]) + expanded, f"bomb-{name}-{compression}")
    rows = COMPRESSORS["zstd"](json_lines("row " * 100).encode() * 2500) * expanded_mib
    written(tmp_path, rows, "bomb-rows")
    one_frame = zstandard.ZstdCompressor().compressobj()
    data = b"".join([one_frame.compress(b"a" * MIB) for _ in range(expanded_mib)]) + one_frame.flush()
    written(tmp_path, data, "bomb-one-frame")
    same = pa.DictionaryArray.from_arrays(pa.array([0] * expanded_mib), ["a" * (MIB - 9)])
    pq.write_table(pa.table({"text": same}), tmp_path / "bomb-dictionary")
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
        env={"PYTHONPATH": f"{tests}:{tests.parents[1]}", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read_files = [line.split() for line in done.stdout.splitlines()]
    assert len(read_files) == 11
    assert all(int(num_rows) > 0 and int(peak) < most_mib for _, num_rows, peak in read_files), done.stdout
