import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_values import BYTES, CHANGES, changed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.model_files.checkpoint import newest_checkpoint, read_progress
from core.model_files.safetensors_files import read_tensors
from data_pipeline.schema.user_errors import InputFault

HEADER = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def safetensors(header: Any, num_bytes: int) -> bytes:
    """A safetensors file with this header and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_bytes)


def read_and_expect_only_our_errors(folder: Path, data: bytes) -> None:
    step = folder / "step-000000000001"
    step.mkdir(exist_ok=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        (step / name).write_bytes(data)
    (step / "progress.json").write_text("{}")
    with suppress(InputFault):
        read_tensors(step / "model.safetensors")
    assert newest_checkpoint(folder) in (None, step)
    (step / "progress.json").write_bytes(data)
    with suppress(ValueError):
        assert isinstance(read_progress(step), dict)
    assert newest_checkpoint(folder) in (None, step)


HEADERS = CHANGES.map(lambda changes: changed(HEADER, changes)) | BYTES
FILES = BYTES | st.builds(safetensors, HEADERS, st.integers(0, 20))


@settings(max_examples=100, derandomize=True)
@given(data=FILES)
def test_random_checkpoint_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), data)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(data=FILES)
def test_any_checkpoint_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read_and_expect_only_our_errors(tmp_path_factory.getbasetemp(), data)


def test_whole_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]
    (tmp_path / "b.safetensors").write_bytes(safetensors(HEADER, 15))
    with pytest.raises(InputFault, match=r"b.safetensors cannot be read as safetensors: .* copy it again"):
        read_tensors(tmp_path / "b.safetensors")
