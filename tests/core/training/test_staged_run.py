"""Trainings in stages: what is carried over, what is reported, and that going on is the same as not having stopped."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_corpus import small_corpus
from two_workers import on_workers

from core.distributed.workers import Workers
from core.model_files.checkpoint import MODEL_FILE, newest_checkpoint
from core.settings.run_config import RunConfig
from core.training.run_checks import Beginning
from core.training.run_end import RunEnd
from core.training.staged_run import run_stages
from core.training.training_run import run_training
from core.training.training_stage import Stage

LENGTHS, STEPS, BATCH_SIZES = (8, 16, 12), (6, 5, 4), (8, 4, 10)


def stages() -> list[Stage]:
    return [
        Stage(stage_run(length, steps * batch_size * length, batch_size), small_corpus(sequence_length=length))
        for length, steps, batch_size in zip(LENGTHS, STEPS, BATCH_SIZES, strict=True)
    ]


def stage_run(length: int, tokens: int, batch_size: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {
                "layers": 1, "width": 16, "heads": 2, "sequence_length": length, "max_sequence_length": max(LENGTHS),
            },
            "objective": {"masked_lm": {"masking_rate": 0.5}},
            "training": {
                "batch_size": batch_size, "micro_batch_size": 4, "tokens": tokens, "learning_rate": 1e-2,
                "precision": "fp32",
            },
        }
    )  # fmt: skip


def train(
    folder: Path, report: Callable[[dict[str, float]], bool] = lambda _: True, workers: Workers | None = None
) -> RunEnd:
    return run_stages(
        stages(),
        workers=workers or Workers(),
        folder=folder,
        report=report,
        evaluate_at_tokens=[300, 600],
        report_every_s=0.0,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return load_file(checkpoint / MODEL_FILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]], RunEnd]:
    """A training in three stages that nothing disturbs: its folder, reports and end."""
    folder = tmp_path_factory.mktemp("whole")
    reports: list[dict[str, float]] = []
    end = train(folder, lambda values: reports.append(values) or True)  # type: ignore[func-returns-value]
    return folder, reports, end


def test_tokens_and_steps_count_on_over_all_stages(whole: tuple[Path, list[dict[str, float]], RunEnd]) -> None:
    _, reports, end = whole
    tokens = [report["tokens"] for report in reports]
    assert end.outcome == "completed"
    assert all(before < after for before, after in itertools.pairwise(tokens))
    assert tokens[-1] == end.tokens == sum(a * b * c for a, b, c in zip(LENGTHS, STEPS, BATCH_SIZES, strict=True))
    assert reports[-1]["step"] == sum(STEPS)


def test_sequence_length_and_learning_rate_are_curves(whole: tuple[Path, list[dict[str, float]], RunEnd]) -> None:
    _, reports, _ = whole
    by_step = {int(report["step"]): report for report in reports}
    lengths = [by_step[step]["train/sequence_length"] for step in range(1, sum(STEPS) + 1)]
    assert lengths == [length for length, steps in zip(LENGTHS, STEPS, strict=True) for _ in range(steps)]
    rates = [by_step[step]["train/learning_rate"] for step in range(1, sum(STEPS) + 1)]
    # The schedule of each stage begins anew: cooled down at the end of the first, at its height in the next.
    assert rates[STEPS[0] - 1] < 0.5 * rates[STEPS[0]]


def test_the_optimizer_counts_the_steps_of_all_stages(whole: tuple[Path, list[dict[str, float]], RunEnd]) -> None:
    checkpoint = newest_checkpoint(whole[0])
    assert checkpoint is not None
    state = load_file(checkpoint / "optimizer.safetensors")
    counts = {float(value) for name, value in state.items() if name.startswith("step/")}
    assert counts == {float(sum(STEPS))}


def test_the_weights_of_a_stage_are_those_that_the_next_begins_with(
    whole: tuple[Path, list[dict[str, float]], RunEnd], tmp_path: Path
) -> None:
    # The same stages by hand: three runs, each told where the one before lies.
    beginning = None
    for number, stage in enumerate(stages()):
        end = run_training(
            stage.run,
            stage.data,
            workers=Workers(),
            folder=tmp_path / str(number),
            report=lambda _: True,
            evaluate_at_tokens=[],
            begins_with=beginning,
        )
        assert end.outcome == "completed"
        checkpoint = newest_checkpoint(tmp_path / str(number))
        assert checkpoint is not None
        beginning = Beginning(checkpoint, is_same_run=False)
    by_hand, staged = weights(tmp_path / "2"), weights(whole[0])
    assert all(torch.equal(by_hand[name], staged[name]) for name in staged)


@pytest.mark.parametrize("steps_until_stopped", [3, sum(STEPS[:1]), 9, 13])
def test_a_training_stopped_in_any_stage_goes_on_as_if_nothing_had_happened(
    whole: tuple[Path, list[dict[str, float]], RunEnd], tmp_path: Path, steps_until_stopped: int
) -> None:
    stopped = train(tmp_path, lambda values: values["step"] < steps_until_stopped)
    reports: list[dict[str, float]] = []
    end = train(tmp_path, lambda values: reports.append(values) or True)  # type: ignore[func-returns-value]
    assert stopped.outcome == "stopped"
    assert end.outcome == "completed"
    assert end.tokens == whole[2].tokens
    # Nothing is trained twice: the first report is of the step after the last one before.
    assert reports[0]["step"] == steps_until_stopped + 1
    gone_on, undisturbed = weights(tmp_path), weights(whole[0])
    assert all(torch.equal(gone_on[name], undisturbed[name]) for name in undisturbed)


def _train_on_each(workers: Workers, folder: str) -> int:
    return train(Path(folder), workers=workers).tokens


def test_two_workers_go_through_the_same_stages(
    whole: tuple[Path, list[dict[str, float]], RunEnd], tmp_path: Path
) -> None:
    assert on_workers(2, _train_on_each, str(tmp_path)) == [whole[2].tokens] * 2
    together, alone = weights(tmp_path), weights(whole[0])
    for name in alone:
        # Sums over workers are in another order: fp32 rounding, grown over 15 steps of Adam.
        torch.testing.assert_close(together[name], alone[name], rtol=1e-3, atol=1e-4)


def test_a_run_that_goes_on_from_its_trunk_is_the_long_run(tmp_path: Path) -> None:
    """A constant learning rate does not know how long a run will be, so a longer one may begin with a shorter."""
    corpus = small_corpus(sequence_length=16)

    def constant(tokens: int, warmup: float, folder: str, beginning: Beginning | None = None) -> RunEnd:
        settings = stage_run(16, tokens, 8).with_overrides({"training.schedule": "constant", "training.warmup": warmup})
        return run_training(
            settings,
            corpus,
            workers=Workers(),
            folder=tmp_path / folder,
            report=lambda _: True,
            evaluate_at_tokens=[],
            begins_with=beginning,
        )

    step = 8 * 16
    constant(10 * step, 0.2, "short")
    trunk = newest_checkpoint(tmp_path / "short")
    assert trunk is not None
    end = constant(20 * step, 0.1, "longer", Beginning(trunk, is_same_run=True))
    constant(20 * step, 0.1, "long")
    longer, long = weights(tmp_path / "longer"), weights(tmp_path / "long")
    assert end.tokens == 20 * step
    assert all(torch.equal(longer[name], long[name]) for name in long)


def test_a_trunk_of_another_run_or_a_longer_one_is_refused(tmp_path: Path) -> None:
    corpus = small_corpus(sequence_length=16)
    settings = stage_run(16, 1000, 8)
    arguments = {"workers": Workers(), "report": lambda _: True, "evaluate_at_tokens": []}
    run_training(settings, corpus, folder=tmp_path / "trunk", **arguments)  # type: ignore[arg-type]
    trunk = newest_checkpoint(tmp_path / "trunk")
    assert trunk is not None
    changed = settings.with_overrides({"training.learning_rate": 1e-3, "training.tokens": 500})
    with pytest.raises(ValueError, match=r"learning_rate is 0.01 there and 0.001 here.*has 1,0\d\d tokens already"):
        run_training(
            changed,
            corpus,
            folder=tmp_path / "other",
            begins_with=Beginning(trunk, is_same_run=True),
            **arguments,  # type: ignore[arg-type]
        )
