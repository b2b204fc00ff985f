"""Settings of a training that is longer than the trials of the sweep which found them."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_pipeline.schema.dotted_paths import value_at
from data_pipeline.schema.user_errors import InputFault
from sweep_examples import record, tiny_sweep
from sweeps.analysis.result_tables import write_summary
from sweeps.planning.full_training import AskedLength, plan_training
from sweeps.planning.warm_start import notes_of
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SweepFolder
from sweeps.records.trial_records import TrialStore
from sweeps.settings.sweep_config import SweepConfig

FULL = 1_600_000
LEARNING_RATE, BATCH = "training.learning_rate", "training.batch_size"
BEST = {LEARNING_RATE: 4e-3, BATCH: 16}
RATE_EXPONENT, BATCH_EXPONENT = 0.1, 0.6
"""Of the losses below; neither is the mean of its prior."""


def loss(settings: dict[str, Any], tokens: int) -> float:
    """A valley whose middle is `BEST` at the full length."""
    t = math.log(tokens / FULL)
    u = math.log(settings[LEARNING_RATE] / BEST[LEARNING_RATE]) - RATE_EXPONENT * t
    v = math.log(settings[BATCH] / BEST[BATCH]) - BATCH_EXPONENT * t
    return 3.0 + 0.3 * math.exp(-0.3 * t) + 0.05 * u**2 + 0.05 * v**2


def swept(method: str) -> SweepConfig:
    raw = tiny_sweep().model_dump(mode="json", exclude_none=True)
    return SweepConfig.model_validate(
        raw
        | {
            "search": {LEARNING_RATE: {"log_uniform": [1e-3, 1.6e-2]}, BATCH: {"choice": [2, 4, 8, 16, 32]}},
            "early_stopping": {"method": method},
            "budget": {"trials": 20, "tokens_per_trial": FULL},
        }
    )


def results_of(tmp_path: Path, method: str) -> Path:
    """A finished sweep; with branches, losses at an eighth and a quarter of the length are known."""
    folder = SweepFolder(tmp_path / "results", swept(method), identity="0123456789abcdef")
    folder.create()
    store = TrialStore(folder.trials)
    store.save(record(1, loss=loss(BEST, FULL), settings=BEST))
    number = 1
    for tokens in (FULL // 8, FULL // 4):
        for rate in (1e-3, 2e-3, 4e-3, 8e-3):
            for batch in (2, 4, 8, 16):
                number += 1
                settings = {LEARNING_RATE: rate, BATCH: batch}
                found = loss(settings, tokens)
                losses = {tokens: found} if method == "full-length" else {}
                store.save(record(number, Outcome.STOPPED, loss=found, settings=settings, rung_losses=losses))
    summary = {"name": "tiny", "status": "finished", "best": {"trial": "trial-0001"}, "data": {"folder": "x"}}
    write_summary(folder.path / "summary.json", summary)
    return folder.path


def plan(folder: Path, *overrides: str, **options: Any) -> SweepConfig:
    return plan_training(
        folder,
        overrides,
        chosen=None,
        length=AskedLength(options.get("tokens"), options.get("times")),
        keep_settings=bool(options.get("keep_settings")),
        results_folder=folder.parent,
        console=Console(file=io.StringIO()),
    )


def test_learning_rate_and_batch_size_move_along_the_path_that_the_sweep_measured(tmp_path: Path) -> None:
    training = plan(results_of(tmp_path, "full-length"), times=8)
    assert training.budget.tokens_per_trial == 8 * FULL
    # The exponents are learnt to about 0.03, so their powers of 8 to about a sixteenth.
    assert training.training.learning_rate == pytest.approx(BEST[LEARNING_RATE] * 8**RATE_EXPONENT, rel=0.08)
    assert training.training.batch_size == pytest.approx(BEST[BATCH] * 8**BATCH_EXPONENT, rel=0.08)
    notes = " | ".join(notes_of(training))
    assert "learning rate 0.004 times" in notes
    assert "learnt by the sweep" in notes
    assert "extrapolated from 1,600,000 to 12,800,000 tokens, 8 times" in notes
    assert "nobody has measured" not in notes


def test_an_extrapolation_beyond_sixteen_times_is_warned_of(tmp_path: Path) -> None:
    notes = " | ".join(notes_of(plan(results_of(tmp_path, "full-length"), tokens=17 * FULL)))
    assert "17 times; beyond 16 times nobody has measured it" in notes


def test_a_shorter_training_has_a_smaller_batch_and_no_larger_micro_batch(tmp_path: Path) -> None:
    training = plan(results_of(tmp_path, "full-length"), "training.micro_batch_size=16", times=0.125).training
    assert training.batch_size == pytest.approx(BEST[BATCH] * 8**-BATCH_EXPONENT, abs=1)
    assert training.micro_batch_size == training.batch_size


@pytest.mark.parametrize("override", ["training.learning_rate=0.002", "training.batch_size=64"])
def test_settings_that_are_given_are_not_moved(tmp_path: Path, override: str) -> None:
    path, _, value = override.partition("=")
    training = plan(results_of(tmp_path, "full-length"), override, times=8).training
    assert value_at(training, path.removeprefix("training.")) == float(value)
    assert training.batch_size in (BEST[BATCH], 64)


def test_settings_are_kept_if_asked_and_where_the_sweep_measured_one_length(tmp_path: Path) -> None:
    kept = plan(results_of(tmp_path / "one", "full-length"), times=8, keep_settings=True).training
    unknown = plan(results_of(tmp_path / "two", "asha"), times=8).training
    for training in (kept, unknown):
        assert (training.learning_rate, training.batch_size) == (BEST[LEARNING_RATE], BEST[BATCH])


def test_a_multiple_of_no_sweep_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "single.yaml"
    file.write_text(
        "name: single\ncorpus: {builtin: python-docs}\nmodel: {layers: 1, width: 32, heads: 2}\n"
        "objective: {masked_lm: {}}\nbudget: {trials: 1, tokens_per_trial: 10k}\n"
    )
    with pytest.raises(InputFault, match="--tokens 8x: no sweep supplies the settings"):
        plan(file, times=8)
