"""AdamW as the run sets it up, against torch's own used plainly."""

import pytest
import torch
from small_corpus import VOCABULARY

from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.training_config import TrainingConfig
from core.step.optimizer import build_optimizer, gradient_norm, second_moment_decay, update

torch.set_num_threads(1)


def small_model(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(layers=1, width=16, heads=2, sequence_length=8), VOCABULARY.size)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_only_matrices_decay() -> None:
    model = small_model()
    optimizer = build_optimizer(model, TrainingConfig(weight_decay=0.3), tokens_per_step=1.0)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim == 2 else 0.0), name
    assert len(decay) == len(list(model.parameters()))


def test_state_is_there_before_the_first_step_and_stays_where_it_is() -> None:
    model = small_model()
    optimizer = build_optimizer(model, TrainingConfig(), tokens_per_step=1.0)
    before = {id(p): optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()}
    update(optimizer, gradient_scale=1.0, learning_rate=1e-3)
    assert {id(p): optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()} == before
    assert all(optimizer.state[p]["step"].item() == 1 for p in model.parameters())


def test_update_with_one_factor_equals_dividing_clipping_and_stepping() -> None:
    ours, reference = small_model(), small_model()
    training = TrainingConfig(weight_decay=0.1, beta2=0.95)
    optimizer = build_optimizer(ours, training, tokens_per_step=1.0)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        foreach=False,
    )
    for step in range(3):
        rate = 1e-2 / (step + 1)
        norm = gradient_norm(ours.parameters()).item() / 50
        update(optimizer, gradient_scale=min(1.0, 0.5 / (norm + 1e-6)) / 50, learning_rate=rate)
        for parameter in reference.parameters():
            assert parameter.grad is not None
            parameter.grad /= 50
        assert torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5).item() == pytest.approx(norm, rel=1e-5)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
    pairs = list(zip(ours.parameters(), reference.parameters(), strict=True))
    # fp32 rounding, enlarged where a second moment is near zero.
    assert max((one - other).abs().max().item() for one, other in pairs) < 1e-5


def test_fused_where_the_device_has_it() -> None:
    optimizer = build_optimizer(small_model(), TrainingConfig(), tokens_per_step=1.0)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_half_life_in_tokens_halves_a_gradients_weight_over_those_tokens_at_any_batch_size() -> None:
    training = TrainingConfig(beta2_half_life_tokens=10_000)
    for tokens_per_step in (100.0, 1000.0, 10_000.0):
        beta2 = second_moment_decay(training, tokens_per_step)
        assert beta2 ** (10_000 / tokens_per_step) == pytest.approx(0.5)
    assert second_moment_decay(TrainingConfig(beta2=0.97), 100.0) == 0.97
