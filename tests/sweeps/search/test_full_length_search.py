"""The winner at the full length from short probes, on surfaces of losses whose optimum is known."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from sweep_examples import record, tiny_sweep
from sweeps.analysis.full_length import predicted_best
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import ChosenBy, TrialRecord
from sweeps.search.full_length_search import FullLengthSearch, InFull, Longer, Probe, Step
from sweeps.search_space.distribution import Distribution
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE
from sweeps.settings.sweep_config import SweepConfig

FULL = 1_600_000
RUNGS = (100_000, 200_000, 400_000)
COOLDOWN = 0.15
RATES = [1e-3 * 2**k for k in range(-3, 6)]
BATCHES = [1, 2, 4, 8, 16, 32]
SPACE = {LEARNING_RATE: Distribution(choice=tuple(RATES)), BATCH: Distribution(choice=tuple(BATCHES))}
CANDIDATES = [{LEARNING_RATE: rate, BATCH: batch} for rate in RATES for batch in BATCHES]

pytestmark = pytest.mark.long

Surface = Callable[[dict[str, Any], int], float]


def moving_valley(chosen: dict[str, Any], tokens: int) -> float:
    """A loss whose best batch size grows as the square root of the tokens, and its best rate as their 0.3rd power."""
    t = math.log(tokens / FULL)
    u = math.log(chosen[LEARNING_RATE] / 4e-3) - 0.3 * t
    v = math.log(chosen[BATCH] / 16) - 0.5 * t
    return 3.0 + 0.3 * math.exp(-0.3 * t) + 0.02 * (u - 0.4 * v) ** 2 + 0.02 * v**2


def rule(**changes: Any) -> FullLengthSearch:
    """The rule on the space above, with tokens of two trainings in full for probes."""
    values: dict[str, Any] = {
        "space": SPACE,
        "candidates": CANDIDATES,
        "rungs": RUNGS,
        "full": FULL,
        "search_tokens": 2 * FULL,
        "cooldown": COOLDOWN,
        "confirm": 2,
    }
    return FullLengthSearch(**(values | changes))


class Sweep:
    """Records of trials that end as a surface tells, one after another."""

    def __init__(self, search: FullLengthSearch, surface: Surface) -> None:
        self.search, self.surface = search, surface
        self.records: dict[int, TrialRecord] = {}
        self.steps: list[Step] = []

    def step(self, may_start: Callable[[dict[str, Any]], bool] = lambda _: True) -> bool:
        """Take the next step; False at the end."""
        step = self.search.next(self.records.values(), may_start=may_start)
        match step:
            case None:
                return False
            case Probe(chosen):
                one = record(len(self.records) + 1, None, settings=chosen, chosen_by=ChosenBy.PROBE)
            case Longer(waiting):
                one = waiting.model_copy(update={"paused_at": None})
            case InFull(chosen, None):
                one = record(len(self.records) + 1, None, settings=chosen, run_to_end=True)
            case InFull(_, waiting):
                assert waiting is not None
                one = waiting.model_copy(update={"paused_at": None, "run_to_end": True})
        self.steps.append(step)
        pause = self.search.pause_of(one, cooldown=COOLDOWN)
        tokens = FULL if pause is None else pause.at_tokens
        loss = self.surface(one.settings, tokens)
        metrics = {"holdout/loss_nats_per_token": loss}
        if pause is None:
            changes: dict[str, Any] = {"outcome": Outcome.COMPLETED}
        else:
            changes = {
                "paused_at": tokens,
                "rung_losses": one.rung_losses | {tokens: loss},
                "branch_tokens": one.branch_tokens + pause.cooldown_tokens,
            }
        self.records[one.number] = one.model_copy(update={"tokens": tokens, "metrics": metrics, **changes})
        return True

    def run(self, may_start: Callable[[dict[str, Any]], bool] = lambda _: True) -> "Sweep":
        """All steps to the end."""
        while self.step(may_start):
            assert len(self.steps) < 500, "the search does not end"
        return self

    @property
    def completed(self) -> list[TrialRecord]:
        """Trainings in full, the lowest loss first."""
        done = [one for one in self.records.values() if one.outcome is Outcome.COMPLETED]
        return sorted(done, key=lambda one: one.loss or 0.0)

    @property
    def probe_tokens(self) -> int:
        """Tokens of all trials up to their last pause."""
        return sum(max(one.rung_losses, default=0) + one.branch_tokens for one in self.records.values())


@pytest.fixture(scope="module")
def ended() -> Sweep:
    """A sweep at its end."""
    return Sweep(rule(), moving_valley).run()


def test_the_winner_of_the_full_length_is_found_where_the_best_short_run_is_another(ended: Sweep) -> None:
    best = min(CANDIDATES, key=lambda one: moving_valley(one, FULL))
    best_of_the_short = min(CANDIDATES, key=lambda one: moving_valley(one, RUNGS[0]))
    assert best[BATCH] >= 4 * best_of_the_short[BATCH], "this surface must mislead a ranking of short runs"
    assert ended.completed[0].settings == best


def test_probes_stay_within_their_tokens_and_trainings_in_full_within_their_number(ended: Sweep) -> None:
    assert ended.probe_tokens <= 2 * FULL
    assert 1 <= len(ended.completed) <= 2
    short = Sweep(rule(search_tokens=FULL, confirm=1), moving_valley).run()
    assert short.probe_tokens <= FULL
    assert len(short.completed) == 1


@pytest.mark.parametrize("tokens", [FULL, 2 * FULL])
def test_probes_that_are_too_long_for_the_first_lengths_stay_within_the_tokens_as_well(tokens: int) -> None:
    def shortest(chosen: dict[str, Any]) -> float:
        return RUNGS[int(chosen[BATCH]) % len(RUNGS)]

    assert Sweep(rule(shortest=shortest, search_tokens=tokens), moving_valley).run().probe_tokens <= tokens


def test_a_resumed_search_takes_the_same_steps(ended: Sweep) -> None:
    resumed = Sweep(rule(), moving_valley)
    while resumed.step():
        resumed.search = rule()
        resumed.records = {
            number: TrialRecord.model_validate_json(one.model_dump_json()) for number, one in resumed.records.items()
        }
    assert [type(step) for step in resumed.steps] == [type(step) for step in ended.steps]
    assert resumed.records == ended.records


def test_only_settings_of_the_space_are_trained_in_full_and_probes_may_lie_outside_of_it(ended: Sweep) -> None:
    assert all(one.settings in CANDIDATES for one in ended.completed)
    probed = [step.settings for step in ended.steps if isinstance(step, Probe)]
    assert any(one[LEARNING_RATE] not in RATES for one in probed)


def test_no_probe_has_a_branch_of_fewer_steps_than_its_batch_needs() -> None:
    def shortest(chosen: dict[str, Any]) -> float:
        return 50 * chosen[BATCH] * 64 / COOLDOWN

    sweep = Sweep(rule(shortest=shortest), moving_valley).run()
    for one in sweep.records.values():
        assert all(tokens >= shortest(one.settings) for tokens in one.rung_losses)


def test_refused_settings_are_neither_probed_nor_trained_in_full() -> None:
    def fits(chosen: dict[str, Any]) -> bool:
        return int(chosen[BATCH]) <= 4

    sweep = Sweep(rule(), moving_valley).run(fits)
    assert all(fits(one.settings) for one in sweep.records.values())
    best = min((one for one in CANDIDATES if fits(one)), key=lambda one: moving_valley(one, FULL))
    assert sweep.completed[0].settings == best


def test_a_rival_is_trained_in_full_beside_the_predicted_best_and_probes_are_waited_for() -> None:
    search = rule(search_tokens=FULL // 2)
    sweep = Sweep(search, moving_valley)
    while not isinstance(search.next(sweep.records.values(), may_start=lambda _: True), InFull):
        sweep.step()
    running = record(99, None, settings=CANDIDATES[0], chosen_by=ChosenBy.PROBE)
    assert search.next([*sweep.records.values(), running], may_start=lambda _: True) is None
    first = search.next(sweep.records.values(), may_start=lambda _: True)
    assert isinstance(first, InFull)
    in_full = record(100, None, settings=first.settings, run_to_end=True)
    second = search.next([*sweep.records.values(), in_full], may_start=lambda _: True)
    assert second is None or (isinstance(second, InFull) and second.settings != first.settings)


@pytest.mark.parametrize(
    ("space", "candidates"),
    [
        ({}, [{}]),
        ({LEARNING_RATE: SPACE[LEARNING_RATE]}, [{LEARNING_RATE: rate} for rate in RATES]),
        (
            {"training.schedule": Distribution(choice=("a", "b"))},
            [{"training.schedule": "a"}, {"training.schedule": "b"}],
        ),
    ],
    ids=["nothing swept", "learning rate alone", "words alone"],
)
def test_any_space_ends_with_a_training_in_full(space: Any, candidates: Any) -> None:
    def loss(chosen: dict[str, Any], tokens: int) -> float:
        return moving_valley({LEARNING_RATE: 1e-3, BATCH: 8} | chosen, tokens)

    sweep = Sweep(rule(space=space, candidates=candidates), loss).run()
    assert sweep.completed


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.0])
def test_equal_losses_and_losses_that_are_no_numbers_end_no_search(loss: float) -> None:
    sweep = Sweep(rule(search_tokens=FULL // 2), lambda _, tokens: loss if tokens < FULL else 2.0).run()
    assert sweep.completed


def test_every_paused_trial_has_a_reason_with_its_predicted_loss(ended: Sweep) -> None:
    waiting = [one for one in ended.records.values() if one.paused_at is not None]
    assert waiting
    for one in waiting[:3]:
        assert "are predicted to come to" in ended.search.reason(one, ended.records.values())


def test_without_confirmation_nothing_is_trained_in_full_and_the_predicted_best_lies_in_the_space() -> None:
    sweep = Sweep(rule(confirm=0), moving_valley).run()
    assert not sweep.completed
    assert not any(isinstance(step, InFull) for step in sweep.steps)
    found = predicted_best(sweep_file(), list(sweep.records.values()), RUNGS)
    assert found is not None
    assert found.settings[BATCH] in BATCHES
    assert found.settings[LEARNING_RATE] in RATES
    best = min(moving_valley(one, FULL) for one in CANDIDATES)
    # The next rate of the grid costs 0.01 nats.
    assert moving_valley(found.settings, FULL) <= best + 0.015
    assert abs(found.loss - moving_valley(found.settings, FULL)) <= found.half_width


def sweep_file() -> SweepConfig:
    """A sweep file with the space above, which trains nothing in full."""
    raw = tiny_sweep().model_dump(mode="json", exclude_none=True)
    space = {path: {"choice": list(values.extremes())} for path, values in SPACE.items()}
    stopping = {"method": "full-length", "confirm": "none"}
    budget = {"trials": 20, "tokens_per_trial": FULL}
    return SweepConfig.model_validate(raw | {"search": space, "early_stopping": stopping, "budget": budget})
