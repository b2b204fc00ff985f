"""Gradients in one buffer, summed over real processes."""

import torch
from small_corpus import VOCABULARY
from two_workers import on_workers

from core.distributed.gradient_exchange import GradientExchange
from core.distributed.workers import Workers
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig

torch.set_num_threads(1)


def exchanged(workers: Workers, breaks_off_on_rank: int | None) -> list[float]:
    """Sum of each parameter's gradient, summed over ranks, after three rounds; buckets of one parameter or two."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(layers=2, width=16, heads=2, sequence_length=8), VOCABULARY.size)
    exchange = GradientExchange(model, workers, bucket_elements=500)
    tokens = torch.arange(16).view(2, 8) + workers.rank
    for number in range(3):
        exchange.reset()
        exchange.start()
        loss = model(tokens).sum() * (workers.rank + 1)
        if not (number == 1 and workers.rank == breaks_off_on_rank):
            loss.backward()
        exchange.finish()
        exchange.agree_on_order()
    return [float(parameter.grad.double().sum()) for parameter in model.parameters() if parameter.grad is not None]


def test_buckets_sent_during_backward_hold_the_sum_of_all_ranks() -> None:
    first, second = on_workers(2, exchanged, None)
    assert first == second
    alone = []
    for rank in (0, 1):
        torch.manual_seed(0)
        model = build_model(ModelConfig(layers=2, width=16, heads=2, sequence_length=8), VOCABULARY.size)
        (model(torch.arange(16).view(2, 8) + rank).sum() * (rank + 1)).backward()
        alone.append([p.grad.double().sum().item() for p in model.parameters() if p.grad is not None])
    for found, one, other in zip(first, *alone, strict=True):
        assert abs(found - one - other) <= 1e-4 * (abs(one) + abs(other)) + 1e-3


def test_rank_that_breaks_off_leaves_no_other_waiting_and_the_next_round_is_right() -> None:
    assert on_workers(2, exchanged, 1)[0] == on_workers(2, exchanged, None)[0]
