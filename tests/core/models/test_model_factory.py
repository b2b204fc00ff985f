"""The parameter counts that the systems printed, and what every model promises."""

import pytest
import torch

from core.models.encoder import RobertaEncoder
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig

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
