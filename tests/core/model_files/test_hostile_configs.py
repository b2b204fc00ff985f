"""config.json and its neighbours from strangers: an error that names the file, before memory is asked for."""

import json
from pathlib import Path

import pytest

from core.model_files.huggingface import weight_files
from core.model_files.huggingface_config import our_config, read_config


def test_a_config_nested_a_hundred_thousand_deep_gives_an_error_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(
        ValueError, match=rf"{tmp_path} has no readable config.json: .*JSON nested more than .*; give a"
    ):
        read_config(tmp_path)


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(ValueError, match="is larger than 16 MiB"):
        read_config(tmp_path)


def test_an_index_of_weights_nested_endlessly_gives_an_error_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json: JSON nested more than 500 levels deep"):
        weight_files(tmp_path)


def test_a_billion_layers_are_refused_before_one_is_made(tmp_path: Path) -> None:
    theirs = {
        "model_type": "llama",
        "hidden_act": "silu",
        "num_attention_heads": 4,
        "hidden_size": 64,
        "num_hidden_layers": 10**9,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    }
    with pytest.raises(ValueError, match="num_hidden_layers=1000000000 instead of at most 1000"):
        our_config(json.loads(json.dumps(theirs)), tmp_path)
