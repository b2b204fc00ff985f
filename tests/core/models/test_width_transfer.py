"""mup: equal to standard at the width of the base, and flat in width where standard grows."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.run_config import RunConfig
from core.settings.training_config import TrainingConfig
from core.step.optimizer import build_optimizer, update

torch.set_num_threads(1)

VOCABULARY_SIZE = 64
FORMS: dict[str, dict[str, Any]] = {
    "decoder": {"family": "decoder"},
    "decoder, untied": {"family": "decoder", "tied_embeddings": False},
    "decoder, experts": {"family": "decoder", "feed_forward": "moe"},
    "modern": {"form": "modern"},
    "roberta": {},
}


def a_model(*, width: int = 64, seed: int = 0, **changes: Any) -> LanguageModel:
    torch.manual_seed(seed)
    shape = {"layers": 2, "width": width, "heads": width // 16, "sequence_length": 16, **changes}
    return build_model(ModelConfig(**shape), VOCABULARY_SIZE)


def trained(model: LanguageModel, *, optimizer: str, num_steps: int) -> LanguageModel:
    """A model after some steps on one batch of random tokens, with the loss of the next token."""
    training = TrainingConfig.model_validate({"optimizer": optimizer})
    chosen = build_optimizer(model, training, tokens_per_step=1.0)
    tokens_BT = some_tokens()
    for _ in range(num_steps):
        chosen.zero_grad()
        logits_BTV = model(tokens_BT[:, :-1])
        torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        update(chosen, gradient_scale=1.0, learning_rate=0.01)
    return model


def some_tokens() -> torch.Tensor:
    return torch.randint(5, VOCABULARY_SIZE, (8, 17), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def rms_of_changes(width: int, **changes: Any) -> dict[str, float]:
    """Root mean square by which activations differ after ten steps from those before, by name."""
    optimizer = changes.pop("optimizer")
    before = activations(a_model(width=width, **changes))
    with torch.enable_grad():
        after = activations(trained(a_model(width=width, **changes), optimizer=optimizer, num_steps=10))
    return {name: (tensor - before[name]).square().mean().sqrt().item() for name, tensor in after.items()}


def activations(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Outputs of attention and feed-forward in the last layer, and the logits."""
    found: dict[str, torch.Tensor] = {}
    last = model.layers[-1]

    def note(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [getattr(last, name).register_forward_hook(note(name)) for name in ("attention", "feed_forward")]
    found["logits"] = model(some_tokens()[:, :-1])
    for handle in handles:
        handle.remove()
    return found


def growth(parametrization: str, *, widths: Sequence[int], **changes: Any) -> dict[str, float]:
    """Slope of the changes of activations over the width, both logarithms, by least squares."""
    scale = {"parametrization": parametrization, "mup_base_width": widths[0]}
    by_width = [rms_of_changes(width, **scale, **changes) for width in widths]
    x = np.log(widths)
    return {name: float(np.polyfit(x, np.log([found[name] for found in by_width]), 1)[0]) for name in by_width[0]}


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_after_ten_steps_activations_have_moved_alike_at_all_widths_with_mup_and_grow_without(optimizer: str) -> None:
    # Muon multiplies matrices of 512 x 2,752 for seconds.
    widths = {"adamw": (64, 128, 256, 512), "muon": (64, 128, 256)}[optimizer]
    with_mup = growth("mup", widths=widths, family="decoder", optimizer=optimizer)
    without = growth("standard", widths=widths, family="decoder", optimizer=optimizer)
    print(optimizer, with_mup, without)
    # Over eight times the width, 0.2 is a factor of 1.5. Without mup Adam's changes grow with the width, Muon's with
    # its root, until the loss is near zero.
    assert max(map(abs, with_mup.values())) < 0.2, (with_mup, without)
    assert max(without.values()) > 0.3, (with_mup, without)
    assert with_mup["logits"] < without["logits"] - 0.2, (with_mup, without)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_at_the_width_and_depth_of_the_base_mup_trains_the_same_bits_as_standard(form: str, optimizer: str) -> None:
    base = {"mup_base_width": 64, "parametrization": "mup"}
    depth = {} if form == "roberta" else {"mup_base_layers": 2}
    standard = trained(a_model(**FORMS[form]), optimizer=optimizer, num_steps=3)
    mup = trained(a_model(**FORMS[form], **base, **depth), optimizer=optimizer, num_steps=3)
    assert mup.scalings
    for (name, one), other in zip(standard.named_parameters(), mup.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("form", FORMS)
def test_wider_models_begin_with_activations_of_the_base_and_logits_smaller_by_the_root(form: str) -> None:
    def scales(width: int) -> dict[str, float]:
        found = activations(a_model(width=width, parametrization="mup", mup_base_width=64, **FORMS[form]))
        return {name: tensor.std().item() for name, tensor in found.items()}

    base, wide = scales(64), scales(256)
    # Random weights are independent of features, so logits begin at 1 / sqrt(4). Only the logit of a token itself does
    # not shrink where the embedding is both in the stream and in the head.
    assert 0.4 < wide["logits"] / base["logits"] < 0.8
    for name in ("attention", "feed_forward"):
        assert wide[name] / base[name] == pytest.approx(1.0, rel=0.3), name


def test_a_step_shrinks_every_matrix_by_the_same_share_as_at_the_base() -> None:
    model = a_model(width=256, family="decoder", parametrization="mup", mup_base_width=64, mup_base_layers=1)
    for optimizer in ("adamw", "muon"):
        training = TrainingConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.3})
        groups = build_optimizer(model, training, tokens_per_step=1.0).param_groups
        decayed = [group for group in groups if group["weight_decay"]]
        shares = [group["rate_factor"] * group["weight_decay"] for group in decayed]
        assert shares == pytest.approx([0.3] * len(decayed))
        assert {p.ndim for group in decayed for p in group["params"]} == {2}


def test_a_factor_in_the_weights_trains_the_function_of_a_factor_in_the_forward_pass() -> None:
    # AdamW on (s W) at rate s r and epsilon e / s is AdamW on W at rate r and epsilon e with a factor of s outside.
    torch.manual_seed(0)
    factor, weights, inputs = 0.25, torch.randn(6, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    targets = torch.randn(40, 6, dtype=torch.float64)
    inside, outside = (weights * factor).requires_grad_(), weights.clone().requires_grad_()
    first = torch.optim.AdamW([inside], lr=factor * 0.1, weight_decay=0.2 / factor, eps=1e-2 / factor)
    second = torch.optim.AdamW([outside], lr=0.1, weight_decay=0.2, eps=1e-2)
    for _ in range(20):
        for parameter, scale, optimizer in ((inside, 1.0, first), (outside, factor, second)):
            optimizer.zero_grad()
            (scale * inputs @ parameter.T - targets).square().mean().backward()
            optimizer.step()
    assert (inside - factor * outside).abs().max().item() < 1e-12


def test_deeper_models_have_branches_that_count_less_in_proportion() -> None:
    def stream(layers: int, **changes: Any) -> float:
        model = a_model(layers=layers, family="decoder", parametrization="mup", mup_base_width=64, **changes)
        found: list[torch.Tensor] = []
        model.final_norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))  # type: ignore[union-attr, operator]
        model(some_tokens())
        return float(found[0].detach().std())

    scaled = [stream(layers, mup_base_layers=2) for layers in (2, 8, 32)]
    plain = [stream(layers) for layers in (2, 8, 32)]
    assert all(deeper <= shallower * 1.02 for shallower, deeper in pairwise(scaled))
    assert plain[2] > 1.1 * plain[0]


def test_what_mup_has_no_rule_for_is_refused_with_the_remedy() -> None:
    mup = {"parametrization": "mup"}
    with pytest.raises(ValidationError, match=r"no rule for feed_forward=memory; use parametrization: standard"):
        ModelConfig.model_validate(mup | {"feed_forward": "memory", "memory": {"entries": 64, "entries_per_token": 4}})
    with pytest.raises(ValidationError, match=r"mup_base_layers=2 scales the branches of pre-norm layers"):
        ModelConfig.model_validate(mup | {"mup_base_layers": 2})
    for name, value in {"lora": {}, "initial_weights": "best"}.items():
        with pytest.raises(ValidationError, match=rf"with training\.{name} use model\.parametrization: standard"):
            RunConfig.model_validate({"model": mup, "objective": "masked_lm", "training": {name: value}})


def test_what_mup_trained_is_a_model_of_the_standard_form() -> None:
    config = ModelConfig(width=64, parametrization="mup", mup_base_width=16, form="modern", mup_base_layers=1)
    assert config.in_standard_form() == ModelConfig(width=64, form="modern")
    trained_with_mup = build_model(config, VOCABULARY_SIZE)
    plain = build_model(config.in_standard_form(), VOCABULARY_SIZE)
    plain.load_state_dict(trained_with_mup.state_dict())
    assert torch.equal(trained_with_mup(some_tokens()), plain(some_tokens()))
    assert not plain.scalings
