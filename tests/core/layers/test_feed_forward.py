"""The feed-forwards against slow references that say what they mean one token at a time."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from core.layers.feed_forward import build_feed_forwards, inner_width
from core.layers.mixture import Mixture, balance_loss
from core.layers.product_key_memory import ProductKeyMemory
from core.models.model_factory import build_model
from core.settings.model_config import MemoryLayerConfig, MixtureConfig, ModelConfig

VARIANTS = ("gelu", "geglu", "swiglu", "moe", "memory", "none")
SMALL_MEMORY = {"entries": 64, "entries_per_token": 4, "heads": 2}


def config_of(kind: str, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"layers": 2, "width": 32, "heads": 4, "sequence_length": 16, "feed_forward": kind, "memory": SMALL_MEMORY}
        | settings
    )


@pytest.mark.parametrize("shape", [{"family": "decoder"}, {"form": "roberta"}, {"form": "modern"}])
@pytest.mark.parametrize("kind", VARIANTS)
def test_every_variant_trains_every_parameter_in_every_form(kind: str, shape: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(kind, **shape), 50)
    logits_BTV = model(torch.randint(5, 50, (8, 16)))
    loss = logits_BTV.logsumexp(-1).mean() + logits_BTV.square().mean()
    balance = model.auxiliary_loss()
    assert (balance is not None) == (kind == "moe")
    (loss if balance is None else loss + balance).backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixture_equals_sending_each_token_to_its_experts_one_by_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = MixtureConfig(experts=5, experts_per_token=2, shared_experts=1)
    mixture = Mixture(16, 24, config, activation="silu").to(dtype)
    x_BTD = torch.randn(2, 7, 16, dtype=dtype)
    expected = torch.zeros(2, 7, 16)
    weights = {name: parameter.float() for name, parameter in mixture.named_parameters()}
    for row in range(2):
        for place in range(7):
            token = x_BTD[row, place].float()
            shares = (weights["router.weight"] @ token).softmax(-1)
            best, which = shares.topk(2)
            for share, number in zip(best / best.sum(), which.tolist(), strict=True):
                gate, up = (token @ weights["gate_and_up_EDF"][number]).chunk(2)
                expected[row, place] += share * ((F.silu(gate) * up) @ weights["down_EFD"][number])
            gate, up = (weights["shared_gate_and_up.weight"] @ token).chunk(2)
            expected[row, place] += weights["shared_down.weight"] @ (F.silu(gate) * up)
    added, _ = mixture(x_BTD)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7 * expected.abs().max().item()}[dtype]
    torch.testing.assert_close(added.float(), expected, rtol=0, atol=tolerance)


def test_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_one_does_everything() -> None:
    even = torch.full((2, 8, 4), 0.25)
    each_in_turn = torch.arange(16).remainder(4).view(2, 8, 1)
    assert balance_loss(even, each_in_turn).item() == pytest.approx(1.0)
    one_sided = F.one_hot(torch.zeros(2, 8, dtype=torch.long), 4).float()
    assert balance_loss(one_sided, torch.zeros(2, 8, 1, dtype=torch.long)).item() == pytest.approx(4.0)


def test_balance_loss_of_a_batch_is_the_mean_of_its_rows_so_that_the_micro_batch_cannot_matter() -> None:
    torch.manual_seed(0)
    model = build_model(config_of("moe", family="decoder"), 50)
    rows = torch.randint(5, 50, (6, 16))

    def loss_of(part: torch.Tensor) -> float:
        model.hidden_states(part)
        loss = model.auxiliary_loss()
        assert loss is not None
        return loss.item()

    split = sum(loss_of(part) * len(part) for part in rows.split((1, 2, 3))) / 6
    assert loss_of(rows) == pytest.approx(split, rel=1e-6)


def test_memory_reads_the_values_of_the_best_keys_of_all() -> None:
    torch.manual_seed(0)
    config = MemoryLayerConfig.model_validate(SMALL_MEMORY)
    memory = ProductKeyMemory(12, config, values=None)
    x_BTD = torch.randn(2, 5, 12)
    query_NH2C = F.rms_norm(memory.query(x_BTD).view(10, 2, 2, -1), (memory.half_keys_H2SC.shape[-1],))
    expected = torch.zeros(10, 12)
    for token in range(10):
        for head in range(2):
            first, second = (memory.half_keys_H2SC[head, half] @ query_NH2C[token, head, half] for half in (0, 1))
            # All 64 pairs, where the layer looks at the best of each half only.
            scores, entries = (first[:, None] + second[None, :]).flatten().topk(4)
            expected[token] += scores.softmax(-1) @ memory.table.weight[entries]
    read, balance = memory(x_BTD)
    assert balance is None
    torch.testing.assert_close(read.view(10, 12), expected, rtol=0, atol=1e-6)


def test_layers_share_one_memory_table_which_is_saved_once() -> None:
    first, second = build_feed_forwards(config_of("memory"))
    assert isinstance(first, ProductKeyMemory)
    assert isinstance(second, ProductKeyMemory)
    assert first.table is second.table
    names = build_model(config_of("memory"), 50).state_dict()
    assert [name for name in names if "values" in name] == ["layers.0.feed_forward.values.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": {"entries": 1000}}, "entries=1000 is not a square number.*try 961 or 1024"),
        ({"memory": {"entries": 16, "entries_per_token": 5}}, "entries_per_token=5 is above the 4 half-keys"),
        ({"mixture": {"experts": 2, "experts_per_token": 3}}, "experts_per_token=3 is above experts=2"),
        ({"family": "decoder", "width": 12, "heads": 4}, "width=12 / heads=4 is odd, .* try width=16"),
    ],
)
def test_impossible_settings_are_refused_with_their_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(settings)


def test_gated_forms_have_about_as_many_weights_as_gelu() -> None:
    widths = {kind: inner_width(config_of(kind, width=768, heads=12)) for kind in ("gelu", "swiglu")}
    assert widths == {"gelu": 3072, "swiglu": 2048}
