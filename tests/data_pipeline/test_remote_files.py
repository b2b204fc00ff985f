import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from preparing import letter_tokenizer
from pyarrow.fs import S3FileSystem
from reading import json_lines, written

from data_pipeline.corpus import for_each_parcel_here
from data_pipeline.corpus_config import CorpusConfig, CorpusError, PackingConfig, TokenizerConfig
from data_pipeline.corpus_files import find_files
from data_pipeline.prepare import prepare

TEXTS = [f"text number {n}" for n in range(200)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3-compatible store with some files in it; addressed as users do, by environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
        store.create_dir("corpora")
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
    server.stop()


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
