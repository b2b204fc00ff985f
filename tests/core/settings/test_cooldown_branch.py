"""Pausing and branching: the trunk is the plain run, and a branch is the shorter run that ends there."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import small_corpus
from two_workers import on_workers

from core.distributed.workers import Workers
from core.model_files.checkpoint import newest_checkpoint, trunk_checkpoint
from core.settings.cooldown_branch import Branch, Pause
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from core.training.training_run import run_training

torch.set_num_threads(1)

TOKENS_PER_STEP = 16 * 16
STEPS = 20
LOSS = "holdout/loss_nats_per_token"


def small_run(*, family: str = "decoder", dropout: float = 0.0, **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {
                "family": family, "layers": 1, "width": 32, "heads": 2, "sequence_length": 16, "dropout": dropout
            },
            "objective": "causal_lm" if family == "decoder" else "masked_lm",
            "training": {
                "batch_size": 16,
                "micro_batch_size": 8,
                "tokens": STEPS * TOKENS_PER_STEP,
                "learning_rate": 3e-3,
                "precision": "fp32",
                **training,
            },
        }
    )  # fmt: skip


def train(run: RunConfig, folder: Path, *, padded: bool = False, **arguments: Any) -> RunEnd:
    settings: dict[str, Any] = {
        "workers": Workers(),
        "report": lambda _: True,
        "evaluate_at_tokens": [],
        "checkpoint_every_s": None,
        "report_every_s": 1e9,
        **arguments,
    }
    return run_training(run, small_corpus(padded=padded), folder=folder, **settings)


def state_of(checkpoint: Path | None) -> bytes:
    assert checkpoint is not None
    return b"".join((checkpoint / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))


@pytest.mark.long
@settings(max_examples=8, deadline=None)
@given(
    pauses=st.lists(st.integers(1, STEPS * TOKENS_PER_STEP), min_size=1, max_size=3),
    cooldown=st.integers(0, 6 * TOKENS_PER_STEP),
    family=st.sampled_from(("decoder", "encoder")),
    dropout=st.sampled_from((0.0, 0.2)),
    padded=st.booleans(),
)
def test_run_with_pauses_equals_the_plain_run_bit_for_bit(
    pauses: list[int], cooldown: int, family: str, dropout: float, padded: bool
) -> None:
    run = small_run(family=family, dropout=dropout)
    with tempfile.TemporaryDirectory() as folder:
        plain = train(run, Path(folder) / "plain", padded=padded, keep_trunk=True)
        outcomes = [
            train(run, Path(folder) / "paused", padded=padded, keep_trunk=True, pause=Pause(tokens, cooldown)).outcome
            for tokens in sorted(pauses)
        ]
        end = train(run, Path(folder) / "paused", padded=padded, keep_trunk=True)
        assert outcomes[0] == "paused" or pauses[0] > (STEPS - 1) * TOKENS_PER_STEP
        assert (end.metrics, end.tokens) == (plain.metrics, plain.tokens)
        for checkpoint_of in (newest_checkpoint, trunk_checkpoint):
            ours, theirs = (checkpoint_of(Path(folder) / name) for name in ("paused", "plain"))
            assert state_of(ours) == state_of(theirs)


@pytest.mark.parametrize("steps_of_branch", [1, 3, 9])
def test_branch_gives_the_loss_of_a_run_that_ends_there(steps_of_branch: int, tmp_path: Path) -> None:
    branch_tokens, trunk_steps = steps_of_branch * TOKENS_PER_STEP, 9
    paused = train(small_run(warmup=0.0), tmp_path / "a", pause=Pause(trunk_steps * TOKENS_PER_STEP, branch_tokens))
    total_steps = trunk_steps + steps_of_branch
    shorter = train(
        small_run(warmup=0.0, tokens=total_steps * TOKENS_PER_STEP, cooldown=steps_of_branch / total_steps),
        tmp_path / "b",
    )
    assert paused.branch is not None
    assert paused.branch.tokens == branch_tokens
    # The same steps; a share of the tokens rounds the learning rate where a count of tokens does not.
    assert paused.metrics[LOSS] == pytest.approx(shorter.metrics[LOSS], rel=1e-5)


def test_branch_leaves_the_checkpoint_of_the_trunk_and_reports_once_at_its_tokens(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    pause = Pause(5 * TOKENS_PER_STEP - 3, 2 * TOKENS_PER_STEP)
    end = train(small_run(), tmp_path, report=lambda values: reports.append(values) or True, pause=pause)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name == f"step-{5:012d}"
    assert (end.outcome, end.tokens) == ("paused", 5 * TOKENS_PER_STEP)
    (report,) = reports
    assert (report["tokens"], report["step"], report["branch/tokens"]) == (end.tokens, 5, 2 * TOKENS_PER_STEP)
    assert report["branch/loss_nats_per_token"] == end.metrics[LOSS]
    assert report["train/learning_rate"] == pytest.approx(3e-3)
    assert LOSS not in report  # that would be a point of the trunk's own curve


def test_branch_that_was_cut_off_is_trained_again_and_comes_out_the_same(tmp_path: Path) -> None:
    pause = Pause(5 * TOKENS_PER_STEP, 3 * TOKENS_PER_STEP)
    calls = iter(range(10_000))
    # Two micro-batches a step: this is in the middle of the branch's second step.
    cut = train(small_run(), tmp_path, pause=pause, is_stopped=lambda: next(calls) > 2 * 6)
    assert (cut.outcome, cut.tokens) == ("stopped", 5 * TOKENS_PER_STEP)
    again = train(small_run(), tmp_path, pause=pause)
    whole = train(small_run(), tmp_path / "whole", pause=pause)
    assert isinstance(again.branch, Branch)
    assert again.metrics == whole.metrics


def test_checkpoint_before_the_cooldown_is_that_of_a_run_that_never_cools(tmp_path: Path) -> None:
    train(small_run(cooldown=0.25), tmp_path / "cools", keep_trunk=True)
    trunk = trunk_checkpoint(tmp_path / "cools")
    assert trunk is not None
    assert trunk.name == f"trunk-{15:012d}"
    train(small_run(schedule="constant"), tmp_path / "never", pause=Pause(15 * TOKENS_PER_STEP, 0))
    assert state_of(trunk) == state_of(newest_checkpoint(tmp_path / "never"))


def test_stop_is_heard_between_micro_batches(tmp_path: Path) -> None:
    asked: list[None] = []
    end = train(small_run(micro_batch_size=2), tmp_path, is_stopped=lambda: len(asked) > 20 or asked.append(None))
    # Eight micro-batches a step: two steps are done, and the third is not.
    assert (end.outcome, end.tokens) == ("stopped", 2 * TOKENS_PER_STEP)


def stopped_on_rank_1(workers: Workers, folder: Path) -> RunEnd:
    asked: list[None] = []
    return train(
        small_run(micro_batch_size=2),
        folder,
        workers=workers,
        is_stopped=lambda: workers.rank == 1 and (len(asked) > 20 or asked.append(None)),
    )


def test_stop_that_one_worker_hears_ends_the_run_on_all_at_the_same_step(tmp_path: Path) -> None:
    ends = on_workers(2, stopped_on_rank_1, tmp_path)
    # Four micro-batches a step and worker.
    assert [(end.outcome, end.tokens) for end in ends] == [("stopped", 5 * TOKENS_PER_STEP)] * 2


def paused_on_two(workers: Workers, folder: Path) -> list[RunEnd]:
    pause = Pause(5 * TOKENS_PER_STEP, 3 * TOKENS_PER_STEP)
    return [train(small_run(), folder, workers=workers, pause=when) for when in (pause, None)]


def test_two_workers_pause_and_go_on_alike(tmp_path: Path) -> None:
    ends = on_workers(2, paused_on_two, tmp_path)
    assert [[end.outcome for end in each] for each in ends] == [["paused", "completed"]] * 2
    assert ends[0][0].metrics == ends[1][0].metrics
    alone = train(small_run(), tmp_path / "alone", pause=Pause(5 * TOKENS_PER_STEP, 3 * TOKENS_PER_STEP))
    assert ends[0][0].metrics[LOSS] == pytest.approx(alone.metrics[LOSS], rel=1e-4)
