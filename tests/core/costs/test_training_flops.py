"""Operations counted without tensors equal those of a real forward pass."""

from typing import Any

import pytest
import torch

from core.costs.training_flops import rough_training_flops_a_token, training_flops_a_token
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.objective_config import ObjectiveConfig
from core.settings.precision import Precision
from core.settings.run_config import RunConfig
from core.step.step_profile import model_flops_a_token
from data_pipeline.tokens.batches import Batch

T, VOCABULARY = 16, 50


@pytest.mark.parametrize(
    ("shape", "objective"),
    [
        ({}, {"masked_lm": {"masking_rate": 0.25}}),
        ({"form": "modern"}, {"masked_lm": {"masking_rate": 0.5}}),
        ({"family": "decoder"}, {"causal_lm": {}}),
        ({"family": "decoder", "feed_forward": "moe"}, {"causal_lm": {}}),
    ],
)
def test_operations_equal_those_counted_in_a_run(shape: dict[str, Any], objective: dict[str, Any]) -> None:
    config = ModelConfig(layers=2, width=32, heads=2, sequence_length=T, **shape)
    run = RunConfig(model=config, objective=ObjectiveConfig.model_validate(objective))
    num_predicted = round((run.objective.masking_rate or 1) * 2 * T)
    tokens_BT = torch.ones(2, T, dtype=torch.long)
    batch = Batch(
        inputs_BT=tokens_BT,
        positions_P=torch.arange(num_predicted),
        labels_P=torch.ones(num_predicted, dtype=torch.long),
        document_ids_BT=None,
        num_tokens=2 * T,
        most_predicted=num_predicted,
    )
    in_a_run = model_flops_a_token(build_model(config, VOCABULARY), batch, Precision("fp32", "cpu"))
    assert training_flops_a_token(run, VOCABULARY) == pytest.approx(in_a_run)


@pytest.mark.parametrize("lora", [None, {}])
@pytest.mark.parametrize("shape", [{}, {"form": "modern"}, {"family": "decoder"}, {"feed_forward": "none"}])
def test_the_rough_count_of_dense_models_is_within_a_factor_of_two(shape: dict[str, Any], lora: Any) -> None:
    objective = {"causal_lm": {}} if "family" in shape else {"masked_lm": {}}
    run = RunConfig.model_validate({"model": shape, "objective": objective, "training": {"lora": lora}})
    assert 0.5 < rough_training_flops_a_token(run, 4096) / training_flops_a_token(run, 4096) < 2
