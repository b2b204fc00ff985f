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
from core.model_files.huggingface_config import read_shape
from core.model_files.safetensors_files import read_tensors
from data_pipeline.schema.user_errors import InputFault

HEADER = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "layer_types": ["full_attention"],
}


def safetensors(header: Any, num_bytes: int) -> bytes:
    """A safetensors file with this header and this number of bytes of data."""
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


def shape_or_our_error(folder: Path, change: Any) -> None:
    data = change if isinstance(change, bytes) else json.dumps(changed(CONFIG, change)).encode()
    (folder / "config.json").write_bytes(data)
    # A KeyError names what is missing; pretune's commands say so.
    with suppress(ValueError, KeyError):
        read_shape(folder)


@settings(max_examples=200, derandomize=True)
@given(change=CHANGES | BYTES)
def test_random_config_of_a_model_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, change: Any) -> None:
    shape_or_our_error(tmp_path_factory.getbasetemp(), change)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(change=CHANGES | BYTES)
def test_any_config_of_a_model_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, change: Any) -> None:
    shape_or_our_error(tmp_path_factory.getbasetemp(), change)


def test_whole_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_shape(tmp_path)[1] == 100
