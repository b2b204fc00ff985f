"""Learning rates and lengths of runs, against the numbers that the systems logged."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.settings.schedule import decay_per_step, learning_rate, plan_steps, run_length, with_warmup_share
from core.settings.training_config import TrainingConfig


def rates(training: TrainingConfig, *fractions: float) -> list[float]:
    return [learning_rate(training, tokens=1000 * fraction, total_tokens=1000) for fraction in fractions]


def test_traffic_bert_of_system_a_takes_the_steps_that_its_log_prints() -> None:
    plan = plan_steps(num_rows=18_092, epochs=3.0, batch_size=64, micro_batch_size=4, warmup=0.10)
    assert plan.accumulation == 16
    assert plan.micro_batches_per_worker == 4_523
    assert plan.num_steps == 848
    assert plan.warmup_steps == 84
    assert plan.annealing_steps == 763


def test_run_of_epochs_ends_after_the_planned_steps() -> None:
    training = TrainingConfig(epochs=3.0, batch_size=64, warmup=0.1)
    length = run_length(training, num_rows=18_092, num_tokens=18_092 * 256)
    assert not length.is_reached(tokens=847 * 64 * 256, step=847)
    assert length.is_reached(tokens=848 * 64 * 256, step=848)
    assert length.schedule_tokens == pytest.approx(848 * 64 * 256)


def test_run_of_tokens_ends_at_the_first_step_that_reaches_them() -> None:
    length = run_length(TrainingConfig(tokens=1000, batch_size=4), num_rows=10, num_tokens=1600)
    assert not length.is_reached(tokens=999, step=5)
    assert length.is_reached(tokens=1000, step=5)


def test_run_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.tokens or training\.epochs"):
        run_length(TrainingConfig(), num_rows=10, num_tokens=100)


def test_cosine_of_system_e_is_a_tenth_plus_half_a_cosine() -> None:
    # lr/10 + lr/2 (1 + cos(pi t)) starts at 1.1 lr and ends at a tenth: our cosine of that peak and that floor.
    rate = 5e-4
    training = TrainingConfig(learning_rate=1.1 * rate, schedule="cosine", warmup=0.0, floor=1 / 11)
    for step in (0, 1, 11_040, 22_080, 44_100, 44_159):
        expected = rate / 10 + rate / 2 * (1 + math.cos(math.pi * step / 44_160))
        assert learning_rate(training, tokens=step, total_tokens=44_160) == pytest.approx(expected, rel=1e-12)
    # The last value of its log.
    assert learning_rate(training, tokens=44_100, total_tokens=44_160) == pytest.approx(5.0002277e-05, rel=2e-5)


def test_cosine_of_system_b_falls_from_the_peak_to_zero() -> None:
    training = TrainingConfig(learning_rate=2e-4, schedule="cosine", warmup=0.0)
    assert rates(training, 0, 0.5, 1) == pytest.approx([2e-4, 1e-4, 0], abs=1e-18)


def test_wsd_rises_stays_and_falls_as_one_minus_a_root() -> None:
    training = TrainingConfig(learning_rate=1.0, warmup=0.1, cooldown=0.2)
    assert rates(training, 0.05, 0.1, 0.5, 0.8, 0.85, 0.95, 1.0) == pytest.approx(
        [0.5, 1.0, 1.0, 1.0, 0.5, 1 - math.sqrt(0.75), 0.0]
    )


def test_linear_falls_to_its_floor() -> None:
    training = TrainingConfig(learning_rate=1.0, schedule="linear", warmup=0.1, floor=0.2)
    assert rates(training, 0.1, 0.55, 1.0) == pytest.approx([1.0, 0.6, 0.2])


def test_constant_stays_after_warmup() -> None:
    assert rates(TrainingConfig(learning_rate=1.0, schedule="constant", warmup=0.1), 0.05, 0.2, 1.0) == [0.5, 1.0, 1.0]


@given(
    st.sampled_from(["wsd", "cosine", "linear", "constant"]),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.floats(0, 1.2),
)
def test_rate_is_between_zero_and_its_peak_everywhere(
    schedule: str, warmup: float, cooldown: float, floor: float, progress: float
) -> None:
    training = TrainingConfig.model_validate(
        {"learning_rate": 0.3, "schedule": schedule, "warmup": warmup, "cooldown": cooldown, "floor": floor}
    )
    assert 0 <= learning_rate(training, tokens=progress * 77, total_tokens=77) <= 0.3 * (1 + 1e-12)


@given(st.sampled_from(["wsd", "cosine", "linear"]), st.integers(1, 10_000))
def test_schedule_reads_tokens_and_not_steps(schedule: str, batch_tokens: int) -> None:
    training = TrainingConfig.model_validate({"schedule": schedule})
    at_half = learning_rate(training, tokens=batch_tokens * 8, total_tokens=batch_tokens * 16)
    assert at_half == learning_rate(training, tokens=8, total_tokens=16)


def test_a_warm_up_in_tokens_or_steps_is_the_share_that_it_comes_to_and_must_end_before_the_cooldown() -> None:
    length = {"total_tokens": 1000.0, "tokens_per_step": 10.0}
    for training in (TrainingConfig(warmup_tokens=150), TrainingConfig(warmup_steps=15)):
        resolved = with_warmup_share(training, **length)
        assert resolved == TrainingConfig(warmup=0.15)
        assert learning_rate(resolved, tokens=75, total_tokens=1000) == pytest.approx(resolved.learning_rate / 2)
    with pytest.raises(ValueError, match=r"warmup_steps=90 is 90% of the 1,000 tokens, and with a cooldown of 15%"):
        with_warmup_share(TrainingConfig(warmup_steps=90), **length)
    assert with_warmup_share(TrainingConfig(warmup_steps=90, schedule="cosine"), **length).warmup == 0.9


@pytest.mark.parametrize(
    ("batch", "rate", "tokens"), [(10.0, 1e-2, 10_000.0), (40.0, 3e-3, 10_000.0), (10.0, 1e-2, 1e6)]
)
def test_updates_weigh_one_over_e_after_the_time_scale_of_weight_decay_at_any_batch_rate_and_length(
    batch: float, rate: float, tokens: float
) -> None:
    training = TrainingConfig(weight_decay_timescale=0.25, learning_rate=rate)
    decay = decay_per_step(training, total_tokens=tokens, tokens_per_step=batch)
    steps = 0.25 * tokens / batch
    # Discrete steps shrink by slightly more than the exponential.
    assert (1 - rate * decay) ** steps == pytest.approx(math.exp(-1), rel=0.01)
    plain = TrainingConfig(weight_decay=0.3)
    assert decay_per_step(plain, total_tokens=tokens, tokens_per_step=batch) == 0.3


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"warmup": 0.1, "warmup_tokens": 5}, "warmup=0.1 and warmup_tokens=5 each set the warm-up; keep one of them"),
        ({"warmup_tokens": 5, "warmup_steps": 5}, "warmup_tokens=5 and warmup_steps=5 each set the warm-up"),
        (
            {"weight_decay": 0.2, "weight_decay_timescale": 0.3},
            "weight_decay=0.2 and weight_decay_timescale=0.3 both set the weight decay; keep one of them",
        ),
        (
            {"muon": {"weight_decay": 0.2}, "weight_decay_timescale": 2},
            "muon.weight_decay=0.2 and weight_decay_timescale=2 both set the weight decay; keep one of them",
        ),
    ],
)
def test_one_thing_set_in_two_units_is_one_fault(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(fault)) as caught:
        TrainingConfig.model_validate(settings)
    assert caught.value.error_count() == 1


def test_resolved_settings_with_a_unit_of_their_own_are_valid_again() -> None:
    training = TrainingConfig.model_validate({"warmup_tokens": "2M", "weight_decay_timescale": 0.3})
    assert TrainingConfig.model_validate(training.model_dump()) == training
    assert (training.warmup_tokens, training.weight_decay_timescale) == (2_000_000, 0.3)
    assert not {"warmup_tokens", "optimizer", "muon"} & set(TrainingConfig().model_dump())
