"""What workers say to one another, in real processes."""

import pytest
import torch
from small_corpus import VOCABULARY
from two_workers import on_workers

from core.models import build_model
from core.run_config import ModelConfig
from core.workers import Workers, check_same_model

torch.set_num_threads(1)


def small_model(width: int = 16, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(ModelConfig(layers=1, width=width, heads=2, sequence_length=8), VOCABULARY.size)


def talk(workers: Workers) -> tuple[int, int, float, list[object]]:
    total = workers.add_up(torch.tensor([workers.rank + 1.0])).item()
    return (
        workers.largest(10 * workers.rank),
        workers.from_first(workers.rank + 5),
        total,
        workers.all_values("abc"[workers.rank]),
    )


def test_every_worker_hears_the_same() -> None:
    assert on_workers(2, talk) == [(10, 5, 3.0, ["a", "b"])] * 2


def test_one_worker_needs_no_process_group() -> None:
    assert talk(Workers()) == (0, 5, 1.0, ["a"])


def test_several_workers_without_a_process_group_are_refused() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        Workers(rank=0, count=4)


def complaint(workers: Workers, fault: str) -> str:
    model = small_model(width=32 if fault == "shape" and workers.rank == 1 else 16)
    if fault == "one weight" and workers.rank == 1:
        with torch.no_grad():
            model.layers[0].attention.out.weight[3, 5] += 1e-6  # type: ignore[index, union-attr]
    settings = "other" if fault == "settings" and workers.rank == 1 else "the same"
    try:
        check_same_model(model, settings, workers)
    except RuntimeError as error:
        return str(error)
    return "none"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nothing", "none"),
        ("shape", r"rank 1: tokens.weight of shape (61, 32) instead of (61, 16)"),
        ("one weight", "rank 1: layers.0.attention.out.weight of the same shape with other weights"),
        ("settings", "rank 1: other settings other instead of the same"),
    ],
)
def test_rank_with_another_model_is_named_on_all_ranks(fault: str, words: str) -> None:
    first, second = on_workers(2, complaint, fault)
    assert first == second
    assert words in first
