"""Whatever bytes a file has, the reader raises errors of its own only, and its accounts balance.

`pytest -m slow -k any_file_for_ten_minutes` throws files at it for ten minutes.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_files import json_lines

from data_pipeline.preparation.corpus_check import check
from data_pipeline.schema.corpus_config import CorpusConfig
from data_pipeline.schema.user_errors import InputFault

TEXTS = ["Zwölf Boxkämpfer", 'he said "hi", and left', "漢字とかな", "plain text here"] * 3
SECONDS = 600


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), sink)
    return sink.getvalue()


def arrow(compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": TEXTS, "kind": pa.array(["a", "b", "a"] * 4).dictionary_encode()})
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as to:
        to.write_table(table, max_chunksize=5)
    return sink.getvalue()


def archive(kind: str) -> bytes:
    sink = io.BytesIO()
    data = json_lines(*TEXTS).encode()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as to:
            to.writestr("a.jsonl", data)
            to.writestr("b.csv", b"text,label\na b,c\n")
    else:
        with tarfile.open(fileobj=sink, mode="w") as to_tar:
            info = tarfile.TarInfo("a.jsonl")
            info.size = len(data)
            to_tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


TABLE = "text,label\n" + "".join('"' + text.replace('"', '""') + '",x\n' for text in TEXTS)
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
WHOLE: dict[str, bytes] = {
    "jsonl": json_lines(*TEXTS).encode(),
    "json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    "conversations": "".join(json.dumps({"conversations": TURNS}) + "\n" for _ in TEXTS).encode(),
    "csv": TABLE.encode(),
    "tsv": TABLE.replace(",", "\t").encode("utf-16"),
    "txt": "\n".join(TEXTS).encode("gb18030", "ignore"),
    "latin": "\n".join(TEXTS[:2] * 9).encode("latin-1"),
    "parquet": parquet(),
    "arrow": arrow(),
    "arrow zstd": arrow("zstd"),
    "zip": archive("zip"),
    "tar": archive("tar"),
    "tar.gz": gzip.compress(archive("tar")),
    "gzip": gzip.compress(json_lines(*TEXTS).encode()),
    "bzip2": bz2.compress(json_lines(*TEXTS).encode()),
    "xz": lzma.compress(json_lines(*TEXTS).encode()),
    "zstd": zstandard.ZstdCompressor().compress(json_lines(*TEXTS).encode()),
    "lz4": pa.compress(json_lines(*TEXTS).encode(), codec="lz4", asbytes=True),
}
MARKS = (b"\n", b'"', b"{", b"[", b"]", b"\0", b"\xff\xfe", b"PAR1", b"\r", b",", b"PK\3\4", b"\x1f\x8b", b"\\")
NAMES = ("corpus", "corpus.jsonl", "corpus.csv", "corpus.json", "corpus.parquet", "corpus.txt")
LIMITS = {"expands_to": "8MiB", "longest_row": "1MiB"}


def read_any(folder: Path, data: bytes, name: str, text: str | None) -> None:
    """Read a file as every command does.

    Raises:
        AssertionError: A row is neither kept nor rejected.
        Exception: Any other fault of the reader.
    """
    path = folder / name
    path.write_bytes(data)
    try:
        report = check(CorpusConfig(path=str(path), text=text, **LIMITS))  # type: ignore[arg-type]
    except InputFault:
        return
    finally:
        path.unlink()
    assert report.rows_read == report.rows_kept + report.rows_rejected
    assert report.rows_read == sum(file.rows_kept + file.rows_rejected for file in report.files)
    assert sum(report.rejects.values()) == report.rows_rejected
    assert report.rows_read or report.problem


def mutated(data: bytes, chosen: random.Random) -> bytes:
    """The bytes with a few changes: flipped, cut, doubled, moved, or with marks of other formats inside."""
    for _ in range(chosen.randint(1, 4)):
        place, other = sorted((chosen.randrange(len(data) + 1), chosen.randrange(len(data) + 1)))
        some = bytes(chosen.randrange(256) for _ in range(chosen.randint(1, 8)))
        begin, middle, end = data[:place], data[place:other], data[other:]
        data = chosen.choice(
            [
                begin + some + data[place + len(some) :],
                begin + some + middle + end,
                begin + end,
                begin + middle + middle + end,
                begin,
                begin + chosen.choice(MARKS) * chosen.choice([1, 2, 500]) + middle + end,
                begin + chosen.choice(list(WHOLE.values())) + middle + end,
            ]
        )
    return data


@given(
    kind=st.sampled_from(sorted(WHOLE)),
    seed=st.integers(0, 2**32),
    name=st.sampled_from(NAMES),
    text=st.sampled_from([None, "text", "label"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused_and_every_row_is_counted(
    tmp_path: Path, kind: str, seed: int, name: str, text: str | None
) -> None:
    read_any(tmp_path, mutated(WHOLE[kind], random.Random(seed)), name, text)


@given(data=st.binary(max_size=300), name=st.sampled_from(NAMES))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_and_every_row_is_counted(tmp_path: Path, data: bytes, name: str) -> None:
    read_any(tmp_path, data, name, None)


@pytest.mark.slow
def test_any_file_for_ten_minutes_gives_only_our_own_errors(tmp_path: Path) -> None:
    seed, stop_at = 0, time.monotonic() + SECONDS
    while time.monotonic() < stop_at:
        seed += 1
        chosen = random.Random(seed)
        kind, name, text = chosen.choice(sorted(WHOLE)), chosen.choice(NAMES), chosen.choice([None, "text", "label"])
        try:
            read_any(tmp_path, mutated(WHOLE[kind], chosen), name, text)
        except BaseException as cause:
            raise AssertionError(f"seed {seed}: {kind} as {name}, text {text}") from cause
    print(f"{seed:,} files read")
