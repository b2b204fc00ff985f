"""A judge beside the holdout: when it is asked, what becomes of its metrics, and what it costs when memory is short."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import TOKENS_PER_STEP, final_weights, small_run, train
from two_workers import on_workers

from core.distributed.workers import Workers
from core.models.language_model import LanguageModel
from core.settings.cooldown_branch import Pause
from core.training.run_end import RunEnd

NAME = "task/mean/weight"


class MeanWeight:
    """Judges a model by the mean size of its weights; memory runs out above a number of rows."""

    def __init__(self, most_rows: int = 1000) -> None:
        self.asked: list[int] = []
        self._most_rows = most_rows

    def metrics(self, model: LanguageModel, num_rows: int, listen: Callable[[], None]) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        listen()
        self._take(num_rows)
        self.asked.append(num_rows)
        return {NAME: float(sum(weight.abs().mean() for weight in model.parameters()))}

    def rehearse(self, model: LanguageModel, num_rows: int) -> None:
        assert not model.training
        self._take(num_rows)

    def _take(self, num_rows: int) -> None:
        if num_rows > self._most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 KiB. Injected.")


def test_a_judge_is_asked_at_its_points_and_at_the_end_and_at_no_other_evaluation(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    end = train(
        small_run(),
        tmp_path,
        report=lambda values: reports.append(values) or True,
        evaluate_at_tokens=[5 * TOKENS_PER_STEP, 10 * TOKENS_PER_STEP, 15 * TOKENS_PER_STEP],
        judge=MeanWeight(),
        judge_at_tokens=[10 * TOKENS_PER_STEP],
    )
    assert [(report["step"], NAME in report) for report in reports] == [(5, False), (10, True), (15, False), (20, True)]
    assert end.metrics[NAME] == reports[-1][NAME]


def test_a_branch_is_judged_at_its_end(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    pause = Pause(10 * TOKENS_PER_STEP, 2 * TOKENS_PER_STEP)
    end = train(
        small_run(schedule="wsd"),
        tmp_path,
        report=lambda values: reports.append(values) or True,
        pause=pause,
        judge=MeanWeight(),
    )
    assert (end.outcome, end.branch is not None) == ("paused", True)
    assert end.metrics[NAME] == reports[-1][f"branch/{NAME}"] > 0


def test_a_judge_changes_no_weight(tmp_path: Path) -> None:
    train(small_run(), tmp_path / "plain")
    train(small_run(), tmp_path / "judged", judge=MeanWeight(), evaluate_at_tokens=[10 * TOKENS_PER_STEP])
    assert final_weights(tmp_path / "plain") == final_weights(tmp_path / "judged")


def test_a_stopped_run_that_resumes_is_judged_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole = train(small_run(), tmp_path / "whole", judge=MeanWeight())
    points = {"evaluate_at_tokens": [10 * TOKENS_PER_STEP], "judge_at_tokens": [10 * TOKENS_PER_STEP]}
    stopped = train(small_run(), tmp_path / "cut", report=lambda _: False, judge=MeanWeight(), **points)
    assert stopped.outcome == "stopped"
    resumed = train(small_run(), tmp_path / "cut", judge=MeanWeight())
    assert (resumed.outcome, resumed.metrics) == ("completed", whole.metrics)


def test_a_judge_that_runs_out_of_memory_is_asked_again_with_half_the_rows(tmp_path: Path) -> None:
    judge = MeanWeight(most_rows=3)
    end = train(small_run(micro_batch_size=8), tmp_path, judge=judge)
    assert end.outcome == "completed"
    assert judge.asked == [2]
    assert [(event.facts.phase, event.size) for event in end.oom_events] == [("evaluation", 8), ("evaluation", 4)]


def test_a_judge_that_never_fits_ends_the_run_as_infeasible(tmp_path: Path) -> None:
    assert train(small_run(), tmp_path, judge=MeanWeight(most_rows=0)).outcome == "infeasible"


def judged_by(workers: Workers, folder: Path) -> tuple[RunEnd, int]:
    judge = MeanWeight()
    return train(small_run(), folder, workers=workers, judge=judge), len(judge.asked)


@pytest.mark.long
def test_two_workers_have_the_metrics_of_the_first_which_alone_is_asked(tmp_path: Path) -> None:
    (first, asked), (second, asked_second) = on_workers(2, judged_by, tmp_path)
    assert (asked, asked_second) == (1, 0)
    assert first.metrics == second.metrics
    assert NAME in first.metrics
