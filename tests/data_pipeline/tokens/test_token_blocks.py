import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from preparing import prepared_from_texts

from data_pipeline.schema.corpus_config import PackingConfig
from data_pipeline.tokens.token_blocks import DamagedBlockError, PreparedCorpus, open_prepared

TEXTS = [f"text number {n}" for n in range(200)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    return prepared_from_texts(tmp_path_factory.mktemp("blocks"), TEXTS, PackingConfig(sequence_length=16))[0]


@pytest.fixture
def copy(prepared: PreparedCorpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.folder, tmp_path / "copy"))


def test_blocks_are_plain_arrow_files_of_one_record_a_document(prepared: PreparedCorpus) -> None:
    with pa.memory_map(str(prepared.folder / prepared.manifest.splits["train"].blocks[0].name)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.num_rows == prepared.manifest.splits["train"].num_documents
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())


def test_a_block_is_mapped_and_reaches_torch_without_a_copy(prepared: PreparedCorpus) -> None:
    tokens = prepared.train.block_tokens(0)
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if "train-" in line]
    assert any(int(start, 16) <= tokens.ctypes.data < int(stop, 16) for start, stop in spans)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch cannot say "read-only"; nobody writes here.
        tensor = torch.from_numpy(tokens)
    assert (tensor.dtype, tensor.data_ptr()) == (torch.uint16, tokens.ctypes.data)


def test_rows_come_in_the_order_asked_for_also_twice(prepared: PreparedCorpus) -> None:
    numbers = np.array([3, 0, 3, prepared.train.num_rows - 1])
    rows = prepared.train.rows(numbers)
    for place, number in enumerate(numbers):
        assert np.array_equal(rows.tokens[place], prepared.train.rows(np.array([number])).tokens[0])


@pytest.mark.parametrize("number", [-1, 10**9])
def test_row_that_is_not_there_is_an_error(prepared: PreparedCorpus, number: int) -> None:
    with pytest.raises(IndexError, match="outside 0"):
        prepared.train.rows(np.array([0, number]))


def test_blocks_pickle_as_paths_also_when_they_have_been_read(prepared: PreparedCorpus) -> None:
    prepared.train.rows(np.arange(5))
    pickled = pickle.dumps(prepared.train)
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)
    assert np.array_equal(again.rows(np.arange(5)).tokens, prepared.train.rows(np.arange(5)).tokens)


def test_reading_many_blocks_holds_no_file_open(prepared: PreparedCorpus) -> None:
    before = len(os.listdir("/proc/self/fd"))
    prepared.train.rows(np.arange(prepared.train.num_rows))
    assert len(os.listdir("/proc/self/fd")) == before


def damage(path: Path, change: str) -> None:
    data = bytearray(path.read_bytes())
    if change == "altered":
        data[len(data) // 2] ^= 1
    path.unlink()
    if change != "missing":
        path.write_bytes(data[:-1] if change == "truncated" else data)


@pytest.mark.parametrize("change", ["altered", "truncated", "missing"])
@pytest.mark.parametrize("seen_before", [False, True])
def test_damaged_block_is_named_on_opening(copy: Path, change: str, seen_before: bool) -> None:
    (copy / "verified.json").unlink()
    for _ in range(seen_before):
        open_prepared(copy)
    block = sorted(copy.glob("train-*.arrow"))[0]
    damage(block, change)
    with pytest.raises(DamagedBlockError, match=block.name):
        open_prepared(copy)


def test_second_opening_does_not_hash_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_prepared(copy)
    monkeypatch.setattr("data_pipeline.tokens.token_blocks.hash_file", lambda path: pytest.fail(f"{path} hashed again"))
    open_prepared(copy)


def test_folder_that_is_no_prepared_corpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no manifest"):
        open_prepared(tmp_path)


def test_rows_that_cross_blocks_are_whole(prepared: PreparedCorpus) -> None:
    """The stream cut into blocks of a few documents gives the rows of the stream in one block."""
    manifest = prepared.manifest
    stream = np.concatenate([prepared.train.block_tokens(n) for n in range(prepared.train.num_blocks)])
    rows = prepared.train.rows(np.arange(prepared.train.num_rows))
    assert rows.tokens[rows.is_real()].tolist() == stream.tolist()
    assert manifest.splits["train"].num_tokens == len(stream)
