"""A batch that grows while a model trains: as exact as one that does not."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_corpus import VOCABULARY, small_corpus
from small_runs import TOKENS_PER_STEP, final_weights, small_run, train

from core.distributed.workers import Workers
from core.memory_prediction.peak_memory import predict_memory
from core.model_files.checkpoint import newest_checkpoint, read_progress, trunk_checkpoint
from core.models.model_factory import build_model
from core.settings.run_config import RunConfig
from core.settings.schedule import run_length
from core.settings.training_config import TrainingConfig
from core.step.optimizer import build_optimizer, follow_batch, second_moment_decay
from core.training.run_checks import Beginning
from core.training.training_run import run_training

torch.set_num_threads(1)

GROWS = {"batch_schedule": {"double_at": [0.25, 0.5]}}


def grown(**training: Any) -> RunConfig:
    """20 steps of the first batch in tokens: 5 of 16 rows, then 2.5 of 32, then 2.5 of 64."""
    return small_run(**GROWS, **training)


def test_the_batch_doubles_at_its_shares_and_the_run_ends_at_its_tokens(tmp_path: Path) -> None:
    tokens = [0.0]
    end = train(grown(), tmp_path, report=lambda values: tokens.append(values["tokens"]) or True, report_every_s=0)
    steps = [(after - before) / TOKENS_PER_STEP for before, after in pairwise(tokens)]
    assert steps == [1] * 5 + [2] * 3 + [4] * 3
    assert end.outcome == "completed"
    length = run_length(grown().training, num_rows=1000, num_tokens=16_000)
    assert length.schedule_tokens == end.tokens == 23 * TOKENS_PER_STEP


def test_every_row_is_read_once_an_epoch_whatever_the_batch(tmp_path: Path) -> None:
    train(grown(), tmp_path)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    progress = read_progress(checkpoint)["progress"]
    assert (progress["position"], progress["step"]) == (23 * 16, 11)


@pytest.mark.parametrize("stops_after", [4, 6, 9])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(stops_after: int, tmp_path: Path) -> None:
    run = grown(beta2_half_life_tokens=2000, weight_decay_timescale=0.7, optimizer="muon")
    train(run, tmp_path / "whole")
    first = train(run, tmp_path / "parts", report=lambda values: values["step"] < stops_after, report_every_s=0)
    assert first.outcome == "stopped"
    assert train(run, tmp_path / "parts").outcome == "completed"
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")


def test_weights_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    def weights(rows: int) -> dict[str, torch.Tensor]:
        train(grown(micro_batch_size=rows), tmp_path / str(rows))
        checkpoint = newest_checkpoint(tmp_path / str(rows))
        assert checkpoint is not None
        return load_file(checkpoint / "model.safetensors")

    whole, cut = weights(64), weights(7)
    # fp32 rounding, enlarged by AdamW where a second moment is near zero.
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 2e-5


def test_settings_in_tokens_follow_the_batch() -> None:
    training = TrainingConfig(beta2_half_life_tokens=1000, weight_decay_timescale=0.5)
    model = build_model(grown().model, 50)
    ours, wide = (
        build_optimizer(model, training, tokens_per_step=tokens, total_tokens=1e5) for tokens in (100.0, 400.0)
    )
    follow_batch(ours, training, before=100.0, now=400.0)
    for one, other in zip(ours.param_groups, wide.param_groups, strict=True):
        assert one["betas"] == other["betas"] == (0.9, second_moment_decay(training, 400.0))
        assert one["weight_decay"] == pytest.approx(other["weight_decay"], rel=1e-12)


def test_memory_is_predicted_for_the_largest_batch(tmp_path: Path) -> None:
    def peak(run: RunConfig, name: str) -> int | None:
        return run_training(
            run,
            small_corpus(padded=False),
            workers=Workers(),
            folder=tmp_path / name,
            report=lambda _: True,
            evaluate_at_tokens=[],
            memory_limit_bytes=2**30,
            checkpoint_every_s=None,
        ).peak_memory_bytes

    def predicted(run: RunConfig) -> int:
        return predict_memory(run, VOCABULARY.size, micro_batch_size=16).peak_bytes

    # The first batch is one pass; only later ones add up gradients over passes.
    growing, large = grown(micro_batch_size=16), small_run(micro_batch_size=16, batch_size=64)
    assert predicted(growing) == predicted(large) > predicted(small_run(micro_batch_size=16, batch_size=16))
    counted = peak(growing, "growing")
    assert counted is not None
    # Exact, but for the norm of one fp32 number in steps that measure the gradient noise: none of the later ones does.
    assert 0 <= predicted(growing) - counted <= 4
    assert peak(large, "large") == predicted(large)


def test_a_longer_training_does_not_continue_a_trunk_whose_batch_grew_at_other_tokens(tmp_path: Path) -> None:
    train(grown(), tmp_path / "short", keep_trunk=True)
    trunk = trunk_checkpoint(tmp_path / "short")
    assert trunk is not None
    with pytest.raises(ValueError, match=r"batch_schedule doubles at shares of the length, which differs there"):
        train(grown(tokens=40 * TOKENS_PER_STEP), tmp_path / "long", begins_with=Beginning(trunk, is_same_run=True))


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"batch_schedule": {"double_at": [0.6, 0.3]}}, "is not ascending between 0 and 1"),
        ({"batch_schedule": {"double_at": [0.0]}}, "is not ascending between 0 and 1"),
        ({"epochs": 1, **GROWS}, "give tokens instead of epochs"),
        ({"warmup_steps": 5, **GROWS}, "give warmup or warmup_tokens"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(training: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        TrainingConfig.model_validate(training)
