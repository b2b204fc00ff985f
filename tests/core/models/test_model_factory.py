"""The parameter counts that the systems printed, and what every model promises."""

import subprocess
import sys

import pytest
import torch

from core.models.encoder import RobertaEncoder
from core.models.lora import add_lora
from core.models.model_factory import build_model, without_values
from core.settings.model_config import ModelConfig
from core.settings.training_config import LoraConfig

ROBERTA_OF_SYSTEM_D = ModelConfig(layers=6, width=768, heads=12, sequence_length=128, max_sequence_length=512)
LLAMA_OF_SYSTEM_B = ModelConfig(
    family="decoder", layers=8, width=512, heads=32, kv_heads=8, feed_forward_width=1408, sequence_length=512
)


def test_system_d_has_its_published_parameter_counts_without_and_with_the_unused_pooler() -> None:
    with torch.device("meta"):
        model = build_model(ROBERTA_OF_SYSTEM_D, 52_000, pad_id=1)
    assert isinstance(model, RobertaEncoder)
    assert model.positions.weight.shape == (514, 768)
    assert model.num_parameters() == 83_504_416
    assert model.num_parameters_with_pooler() == 84_095_008


@pytest.mark.parametrize("inner_width", [1408, None])
def test_system_b_has_its_published_parameter_count(inner_width: int | None) -> None:
    config = LLAMA_OF_SYSTEM_B.model_copy(update={"feed_forward_width": inner_width})
    with torch.device("meta"):
        assert build_model(config, 6_400).num_parameters() == 25_829_888


def test_memory_layers_of_a_million_entries_share_one_table_in_place_of_the_feed_forward() -> None:
    with torch.device("meta"):
        plain, memory = (
            build_model(LLAMA_OF_SYSTEM_B.model_copy(update={"feed_forward": kind}), 6_400)
            for kind in ("none", "memory")
        )
    table = [p for p in memory.parameters() if p.shape == (1_048_576, 512)]
    assert len(table) == 1
    # The rest are keys (two sets of 1,024 half-keys a head), queries and norms: small beside the table.
    assert table[0].numel() < memory.num_parameters() - plain.num_parameters() < 1.05 * table[0].numel()


FORMS = [
    {},
    {"form": "modern"},
    {"family": "decoder"},
    {"family": "decoder", "feed_forward": "moe"},
    {"feed_forward": "memory", "memory": {"entries": 4096}},
]


@pytest.mark.parametrize("form", FORMS)
def test_a_model_without_values_has_the_shapes_of_one_with_values(form: dict[str, object]) -> None:
    config = ModelConfig.model_validate({"layers": 1, "width": 64, "heads": 2} | form)
    model = build_model(config, 500)
    add_lora(model, config, LoraConfig())
    with without_values():
        shapes = build_model(config, 500)
        add_lora(shapes, config, LoraConfig())
    assert all(tensor.is_meta for tensor in shapes.state_dict().values())
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in shapes.state_dict().items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()
    ]


def test_models_without_values_need_no_compiler() -> None:
    code = (
        "import sys\n"
        "from core.models.model_factory import build_model, without_values\n"
        "from core.settings.model_config import ModelConfig\n"
        f"for form in {FORMS!r}:\n"
        "    with without_values():\n"
        "        build_model(ModelConfig.model_validate(form), 500)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
