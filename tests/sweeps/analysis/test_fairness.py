"""Comparisons that would mislead are named before a sweep, each with its remedy; fair ones pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversing import prepared_conversations
from sweep_examples import tiny_sweep
from sweeps.analysis.fairness import (
    Remark,
    UnfairSweepError,
    num_predicted_positions,
    refuse_unfair,
    remarks,
)
from sweeps.analysis.noise_floor import nats
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.settings.sweep_config import SweepConfig


def remarks_on(search: dict[str, Any], *overrides: str, num_predicted: int | None = None) -> list[tuple[str, Remark]]:
    """Verdicts and remarks on the tiny sweep with this space and no other."""
    sweep = tiny_sweep("budget.tokens_per_trial=10M", *overrides)
    changed = SweepConfig.model_validate(sweep.model_dump(mode="json", exclude_none=True) | {"search": search})
    rungs = rung_tokens(changed.early_stopping, changed.budget.tokens_per_trial)
    return [(one.verdict, one) for one in remarks(changed, rungs=rungs, num_predicted=num_predicted)]


def test_a_swept_masking_rate_is_fair_for_the_evaluation_does_not_change() -> None:
    ((verdict, remark),) = remarks_on({"objective.masked_lm.masking_rate": {"uniform": [0.1, 0.5]}})
    assert verdict == "fair"
    assert "15% under the same masks" in str(remark)


def test_batch_sizes_are_fair_with_rungs_in_tokens_that_are_many_steps() -> None:
    assert [verdict for verdict, _ in remarks_on({"training.batch_size": {"choice": [16, 32]}})] == ["fair"]


def test_a_rung_that_the_largest_batch_reaches_in_a_few_steps_is_warned_of() -> None:
    ((verdict, remark),) = remarks_on({"training.batch_size": {"choice": [2048, 8192]}})
    assert verdict == "warning"
    # A ninth of the 10M tokens are 4 steps of 8,192 rows of 32 tokens.
    assert "8192 rows has taken 4.2 steps" in str(remark)
    assert f"{10 * 8192 * 32:,} tokens" in remark.fix


def test_a_rung_inside_the_warm_up_is_warned_of() -> None:
    found = remarks_on({"training.warmup": {"uniform": [0.01, 0.5]}})
    assert [verdict for verdict, _ in found] == ["warning"]
    assert "warm-up" in str(found[0][1])


def test_a_warm_up_in_tokens_is_judged_by_its_tokens() -> None:
    ((verdict, remark),) = remarks_on({}, "training.warmup_tokens=5M")
    assert verdict == "warning"
    assert "lies in the warm-up (50% of all tokens)" in str(remark)
    assert remarks_on({}, "training.warmup_tokens=10k") == []


def test_probes_keep_settings_in_units_of_their_own_and_the_plan_says_so() -> None:
    space = {"training.learning_rate": {"log_uniform": [1e-3, 1e-2]}}
    units = ("training.warmup_tokens=10k", "training.weight_decay_timescale=0.3")
    found = [str(one) for _, one in remarks_on(space, "early_stopping.method=full-length", *units)]
    (kept,) = (words for words in found if "keep" in words)
    assert "the warm-up in tokens, the time scale of weight decay" in kept
    assert not any("keep" in str(one) for _, one in remarks_on(space, "early_stopping.method=full-length"))


def test_a_decay_with_early_stopping_is_warned_of_and_with_none_it_is_fair() -> None:
    ((verdict, remark),) = remarks_on({}, "training.schedule=cosine", "early_stopping.method=asha")
    assert verdict == "warning"
    assert "wsd" in remark.fix
    assert remarks_on({}, "training.schedule=cosine", "early_stopping.method=none") == []


def test_schedules_that_come_down_at_different_times_are_refused_with_early_stopping() -> None:
    search = {"training.schedule": {"choice": ["wsd", "cosine"]}}
    found = [remark for _, remark in remarks_on(search, "early_stopping.method=asha")]
    with pytest.raises(UnfairSweepError, match=r"do not compare\. Set early_stopping: \{method: none\}"):
        refuse_unfair(found)
    assert remarks_on(search, "early_stopping.method=none") == []


@pytest.mark.parametrize(
    ("choices", "override", "is_warned"),
    [
        ([16, 256], "training.beta2=0.98", True),
        ([16, 128], "training.beta2=0.98", False),
        ([16, 256], "training.beta2_half_life_tokens=100k", False),
    ],
)
def test_one_beta2_over_a_sixteen_fold_range_of_batch_sizes_is_warned_of(
    choices: list[int], override: str, is_warned: bool
) -> None:
    found = remarks_on({"training.batch_size": {"choice": choices}}, override)
    assert any("beta2" in str(remark) for _, remark in found) == is_warned


def test_the_half_life_advised_gives_the_files_beta2_in_the_middle_of_the_batch_sizes() -> None:
    found = remarks_on({"training.batch_size": {"choice": [16, 256]}}, "training.beta2=0.98")
    (fix,) = [remark.fix for _, remark in found if "beta2" in remark.what]
    advised = int(fix.split(": ")[1].split(",")[0].replace("_", ""))
    # core.step.optimizer's own formula, at 64 rows of 32 tokens.
    assert 0.5 ** (64 * 32 / advised) == pytest.approx(0.98, abs=1e-5)


def test_a_small_holdout_is_warned_of_with_a_share_that_would_do() -> None:
    ((verdict, remark),) = remarks_on({}, num_predicted=1000)
    assert verdict == "warning"
    # The tiny sweep holds out 5 %: ten times as many positions would be half of the corpus.
    assert "1,000 positions" in str(remark)
    assert remarks_on({}, num_predicted=50_000) == []


def test_a_swept_precision_is_warned_of_for_trials_are_evaluated_in_their_own() -> None:
    found = remarks_on({"training.precision": {"choice": ["fp32", "bf16"]}})
    assert [verdict for verdict, _ in found] == ["warning"]


def test_of_conversations_the_holdout_predicts_the_answers_alone(tmp_path: Path) -> None:
    data = prepared_conversations(tmp_path, [[("user", f"what is {n}"), ("assistant", f"{n}")] for n in range(40)])
    is_target = data.holdout.rows(np.arange(data.holdout.num_rows)).is_target
    assert is_target is not None
    answers = int(is_target.sum())
    assert 0 < answers < data.holdout.num_tokens
    assert num_predicted_positions(tiny_sweep(), data.manifest) == answers


@pytest.mark.parametrize(
    ("difference", "words"),
    [(0.0, "0.0000 nats"), (1e-9, "less than 0.0001 nats"), (6e-5, "0.0001 nats"), (-0.02, "-0.0200 nats")],
)
def test_a_difference_is_shown_as_zero_only_if_it_is_zero(difference: float, words: str) -> None:
    assert nats(difference) == words
