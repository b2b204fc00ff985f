import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_values import BYTES, CHANGES, changed
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import prepared_from_texts

from data_pipeline.schema.corpus_config import CorpusError, PackingConfig
from data_pipeline.schema.manifest import read_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A manifest as JSON values."""
    packing = PackingConfig(sequence_length=8)
    prepared, _ = prepared_from_texts(tmp_path_factory.mktemp("corpus"), [f"text {n}" for n in range(40)], packing)
    return json.loads((prepared.folder / "manifest.json").read_bytes())


def read_and_expect_only_our_errors(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with suppress(CorpusError):
        read_manifest(folder)


@settings(max_examples=100, derandomize=True)
@given(change=CHANGES | BYTES)
def test_random_manifest_gives_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, manifest: Any, change: Any
) -> None:
    data = change if isinstance(change, bytes) else json.dumps(changed(manifest, change)).encode()
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), data)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(change=CHANGES | BYTES, cut=st.integers(0, 10_000))
def test_any_manifest_gives_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, manifest: Any, change: Any, cut: int
) -> None:
    data = change if isinstance(change, bytes) else json.dumps(changed(manifest, change)).encode()
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), data)
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), data[:cut])


def test_manifest_is_read(tmp_path: Path, manifest: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(tmp_path).rows_read == 40
