import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import bucket_called
from preparing import letter_tokenizer
from signed_files import signed_file
from written_files import json_lines, written

from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError, PackingConfig, TokenizerConfig

TEXTS = [f"text number {n}" for n in range(200)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3-compatible store with some files in it; addressed as users do, by environment."""
    with bucket_called("corpora") as store:
        half = len(TEXTS) // 2
        contents = {
            "a.jsonl": json_lines(*TEXTS[:half]).encode(),
            "deep/b.jsonl.gz": gzip.compress(json_lines(*TEXTS[half:]).encode()),
            "README.md": b"no text",
            ".hidden": b"no text",
        }
        for name, data in contents.items():
            with store.open_output_stream(f"corpora/texts/{name}", compression=None) as stream:
                stream.write(data)
        yield "s3://corpora/texts"


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", ["a.jsonl", "deep/b.jsonl.gz"]),
        ("/a.jsonl", ["a.jsonl"]),
        ("/*.jsonl", ["a.jsonl"]),
        ("/**/*.jsonl*", ["a.jsonl", "deep/b.jsonl.gz"]),
    ],
)
def test_files_of_an_object_store_are_found_like_those_of_a_disk(bucket: str, inside: str, expected: list[str]) -> None:
    found = find_files(CorpusConfig(path=bucket + inside))
    assert [file.path for file in found.files] == [f"{bucket}/{name}" for name in expected]
    if not inside:
        assert {item.path.removeprefix(f"{bucket}/") for item in found.passed_over} == {".hidden", "README.md"}


def test_missing_object_is_named_with_what_stands_beside_it(bucket: str) -> None:
    with pytest.raises(CorpusError, match=r"s3://corpora/textz does not exist; did you mean texts\?"):
        find_files(CorpusConfig(path="s3://corpora/textz"))
    assert bucket.endswith("texts")


def test_corpus_of_an_object_store_is_prepared_as_the_same_files_on_disk(tmp_path: Path, bucket: str) -> None:
    letter_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json"))
    local = written(tmp_path, json_lines(*TEXTS), "local.jsonl")
    remote, here = (
        prepare(
            CorpusConfig(path=path),
            tokenizer,
            PackingConfig(sequence_length=32),
            prepared_folder=tmp_path / "prepared" / name,
            run=for_each_parcel_here,
        ).manifest
        for name, path in (("remote", bucket), ("here", str(local)))
    )
    for split in ("train", "holdout"):
        assert remote.splits[split].content_hash == here.splits[split].content_hash
        assert remote.splits[split].num_tokens == here.splits[split].num_tokens
    assert [file.compression for file in remote.files] == [None, "gzip"]


def test_a_url_signed_again_is_known_already_and_the_cache_has_no_token(tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    with signed_file("a.jsonl", json_lines(*TEXTS).encode(), token="CANARY") as address:
        urls = [f"{address}?X-Amz-Date={day}&token=CANARY" for day in (1, 2)]
        for url in urls:
            corpus = CorpusConfig(path=url)
            (file,) = examine_files(find_files(corpus), corpus, memory=memory).files
            assert file.path == url, "it could not be read any more"
    assert len(json.loads(memory.read_text())) == 1
    assert "CANARY" not in memory.read_text()
