"""What workers say to one another, in real processes."""

import time
from pathlib import Path

import pytest
import torch
from small_corpus import VOCABULARY
from small_steps import a_step, train
from two_workers import close_group, on_workers

from core.distributed.workers import Workers, WorkerSilentError, check_same_model
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from patience import wait_until

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


def hears_of(workers: Workers, fault: str, has_heard: Path) -> tuple[str, float]:
    """What a worker is told when rank 1 is stuck in its own work until rank 0 has heard; and after how many seconds."""
    step = a_step(workers, micro_batch_size=8)
    step.overlaps_exchange = fault == "during an exchange"
    train(step, num_steps=2)
    started_at = time.monotonic()
    if workers.rank == 1:
        wait_until(has_heard.exists, "rank 0 was never told")
    try:
        train(step, num_steps=1, from_step=2)
    except WorkerSilentError as error:
        has_heard.touch()
        return str(error), time.monotonic() - started_at
    return "nothing", time.monotonic() - started_at


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["after local work", "during an exchange"])
def test_a_worker_that_is_stuck_is_noticed_within_the_deadline(fault: str, tmp_path: Path) -> None:
    (first, waited_s), (second, _) = on_workers(2, hears_of, fault, tmp_path / "has heard", deadline_s=2)
    close_group(2, deadline_s=2)
    assert first.startswith("rank 0 of 2 got no answer from another worker, which hangs or has ended; see ")
    # The other one was stuck until then; no other deadline of these tests is under a minute.
    assert 2 <= waited_s < 60
    # When it wakes up it finds itself alone, and ends as well.
    assert second.startswith("rank 1 of 2 got no answer")


def test_an_error_that_is_not_silence_keeps_its_name() -> None:
    with pytest.raises(RuntimeError, match="shape mismatch") as caught, Workers().listening():
        raise RuntimeError("shape mismatch")
    assert type(caught.value) is RuntimeError
