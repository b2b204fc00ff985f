"""Models with other feed-forwards, made equal: against torch's own counts, and against the baseline of system B."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.models.model_factory import build_model
from core.models.size_matching import equalized, flops_a_token, num_parameters
from core.settings.model_config import MemoryLayerConfig, MixtureConfig, ModelConfig

BASELINE = ModelConfig(
    family="decoder", layers=8, width=512, heads=32, kv_heads=8, feed_forward_width=1408, sequence_length=512
)
KINDS = ("swiglu", "moe", "memory", "none")


def counted_flops(config: ModelConfig) -> float:
    """By torch, of the forward pass without the head, a token; attention's scores are left to the caller."""
    model = build_model(config, 32)
    rows = torch.zeros(2, config.sequence_length, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.hidden_states(rows)
    return counter.get_total_flops() / rows.numel()


@pytest.mark.parametrize("kind", ["swiglu", "memory", "moe"])
def test_operations_of_a_feed_forward_are_those_that_torch_counts(kind: str) -> None:
    # One expert and no choice: in fp32 torch's path lets every expert see every row, which counts too much.
    plain = ModelConfig(
        family="decoder",
        layers=2,
        width=32,
        heads=2,
        sequence_length=16,
        mixture=MixtureConfig(experts=1, experts_per_token=1, shared_experts=2),
        memory=MemoryLayerConfig(entries=64, heads=2, entries_per_token=4),
    )
    with_it, without = (plain.model_copy(update={"feed_forward": name}) for name in (kind, "none"))
    # Torch does not count the sum of the memory's values: 2 heads read 4 of width 32, in 2 layers.
    uncounted = 2.0 * 2 * 2 * 4 * 32 if kind == "memory" else 0.0
    ours = flops_a_token(with_it) - flops_a_token(without)
    theirs = counted_flops(with_it) - counted_flops(without)
    assert theirs == pytest.approx(ours - uncounted, rel=0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_parameters_are_within_two_percent_of_the_baseline(kind: str) -> None:
    model = equalized(BASELINE.model_copy(update={"feed_forward": kind, "equal_in": "parameters"}))
    assert num_parameters(model) == pytest.approx(num_parameters(BASELINE), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_operations_are_within_two_percent_of_the_baseline(kind: str) -> None:
    model = equalized(BASELINE.model_copy(update={"feed_forward": kind, "equal_in": "flops"}))
    assert flops_a_token(model) == pytest.approx(flops_a_token(BASELINE), rel=0.02)


@pytest.mark.parametrize("equal_in", ["parameters", "flops"])
def test_no_neighbouring_size_comes_nearer(equal_in: str) -> None:
    model = equalized(BASELINE.model_copy(update={"feed_forward": "moe", "equal_in": equal_in}))
    measure = num_parameters if equal_in == "parameters" else flops_a_token
    assert model.feed_forward_width is not None
    widths = [model.feed_forward_width + more for more in (-8, 0, 8)]
    sizes = [measure(model.model_copy(update={"feed_forward_width": width})) for width in widths]
    distances = [abs(size - measure(BASELINE)) for size in sizes]
    assert distances[1] == min(distances)


def test_the_baseline_itself_stays_as_it_is() -> None:
    assert equalized(BASELINE.model_copy(update={"equal_in": "parameters"})) == BASELINE
    assert equalized(BASELINE) == BASELINE
