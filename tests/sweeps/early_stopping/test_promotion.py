"""Who is promoted, whatever the order in which results come, and that records on disk are all it takes to know it."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep_examples import tiny_sweep
from sweeps.early_stopping.promotion import FEWEST_FINALISTS, Promotions, drawn_to_run_to_the_end
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_sections import EarlyStoppingConfig

RUNGS = (1000, 3000)
FACTOR = 3


class Sweep:
    """A sweep without training: trials have a loss for each rung, and legs end in any order."""

    def __init__(self, losses: list[dict[int, float]], *, num_lanes: int, order: int, to_end: tuple[int, ...] = ()):
        self.losses = losses
        self.promotions = Promotions(RUNGS, FACTOR, len(losses))
        self.records: dict[int, TrialRecord] = {}
        self.running: list[int] = []
        self.leaders: set[int] = set()
        """Trials that were the best of those seen at a rung."""
        self.num_lanes, self.to_end = num_lanes, to_end
        self.rng = random.Random(order)

    def run(self) -> dict[int, TrialRecord]:
        """To the end."""
        while True:
            self.fill_lanes()
            if not self.running:
                return self.records
            self.end_a_leg()

    def fill_lanes(self) -> None:
        while len(self.running) < self.num_lanes:
            record = self.next()
            if record is None:
                return
            self.records[record.number] = record.model_copy(update={"paused_at": None})
            self.running.append(record.number)

    def next(self) -> TrialRecord | None:
        known = self.records.values()
        promoted = self.promotions.next(known, is_closing=False)
        if promoted is None and len(self.records) < len(self.losses):
            number = len(self.records) + 1
            return TrialRecord(number=number, settings={}, run_to_end=number in self.to_end)
        return promoted or self.promotions.next(known, is_closing=True)

    def end_a_leg(self) -> None:
        number = self.running.pop(self.rng.randrange(len(self.running)))
        record = self.records[number]
        pause = self.promotions.pause_of(record, cooldown=0.15)
        changes: dict[str, Any] = {"outcome": Outcome.COMPLETED}
        if pause is not None:
            losses = record.rung_losses | {pause.at_tokens: self.losses[number - 1][pause.at_tokens]}
            changes = {"rung_losses": losses, "paused_at": pause.at_tokens}
        self.records[number] = record.model_copy(update=changes)
        for rung in RUNGS:
            seen = {r.rung_losses[rung]: r.number for r in reversed(self.records.values()) if rung in r.rung_losses}
            self.leaders |= {seen[min(seen)]} if seen else set()
        for beaten, reason in list(self.promotions.beaten(self.records.values())):
            assert reason
            ended = {"outcome": Outcome.STOPPED, "paused_at": None}
            self.records[beaten.number] = beaten.model_copy(update=ended)

    def restored(self, folder: Path) -> "Sweep":
        """As another process would find it: from the records on disk, with running trials to be begun again."""
        store = TrialStore(folder)
        for record in self.records.values():
            store.save(record)
        other = Sweep(self.losses, num_lanes=self.num_lanes, order=0, to_end=self.to_end)
        other.records = {record.number: record for record in store.load_all()}
        other.running, other.rng = list(self.running), self.rng
        return other


finite = st.floats(0.5, 10)
trial_losses = st.fixed_dictionaries(dict.fromkeys(RUNGS, finite))
orders = st.integers(0, 1000)


@given(losses=st.lists(trial_losses, min_size=1, max_size=30), num_lanes=st.integers(1, 4), order=orders)
def test_best_at_every_rung_is_completed_and_the_rest_is_stopped(
    losses: list[dict[int, float]], num_lanes: int, order: int
) -> None:
    losses[0] = dict.fromkeys(RUNGS, 0.25)
    sweep = Sweep(losses, num_lanes=num_lanes, order=order)
    records = sweep.run()
    assert len(records) == len(losses)
    assert records[1].outcome is Outcome.COMPLETED
    completed = [record for record in records.values() if record.outcome is Outcome.COMPLETED]
    # Promotions while others are still to come may be mistaken: that is the price of not waiting for anybody.
    most = max(FEWEST_FINALISTS, len(losses) // FACTOR) + len(sweep.leaders)
    assert min(FEWEST_FINALISTS, len(losses)) <= len(completed) <= most
    waiting = [record for record in records.values() if record.outcome is None]
    assert all(record.paused_at is not None for record in waiting)


@given(losses=st.lists(trial_losses, min_size=2, max_size=20))
def test_better_one_of_the_first_two_is_a_finished_model_before_a_third_begins(losses: list[dict[int, float]]) -> None:
    sweep = Sweep(losses, num_lanes=1, order=0)
    while not any(record.outcome is Outcome.COMPLETED for record in sweep.records.values()):
        sweep.fill_lanes()
        sweep.end_a_leg()
    assert len(sweep.records) == 2


@given(
    losses=st.lists(trial_losses, min_size=2, max_size=20), num_lanes=st.integers(1, 3), order=orders, data=st.data()
)
def test_loss_that_is_not_a_number_never_survives_a_rung(
    losses: list[dict[int, float]], num_lanes: int, order: int, data: st.DataObject
) -> None:
    lost = data.draw(st.sets(st.integers(1, len(losses)), min_size=1))
    rung = data.draw(st.sampled_from(RUNGS))
    for number in lost:
        losses[number - 1][rung] = data.draw(st.sampled_from((math.nan, math.inf)))
    records = Sweep(losses, num_lanes=num_lanes, order=order, to_end=tuple(sorted(lost)[:1])).run()
    for number in lost:
        if rung in records[number].rung_losses:
            assert records[number].outcome is Outcome.STOPPED
            assert max(records[number].rung_losses) == rung


@given(losses=st.lists(trial_losses, min_size=3, max_size=20), num_lanes=st.integers(1, 3), order=orders)
def test_trial_that_was_drawn_is_completed_however_bad_it_is(
    losses: list[dict[int, float]], num_lanes: int, order: int
) -> None:
    losses[1] = dict.fromkeys(RUNGS, 99.0)
    records = Sweep(losses, num_lanes=num_lanes, order=order, to_end=(2,)).run()
    assert records[2].outcome is Outcome.COMPLETED


@settings(deadline=None)  # It writes files.
@given(
    losses=st.lists(trial_losses, min_size=2, max_size=12), num_lanes=st.integers(1, 3), order=orders,
    legs=st.integers(0, 12),
)  # fmt: skip
def test_sweep_that_goes_on_from_its_records_decides_as_it_would_have(
    losses: list[dict[int, float]], num_lanes: int, order: int, legs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sweep = Sweep(losses, num_lanes=num_lanes, order=order)
    sweep.fill_lanes()
    for _ in range(legs):
        if sweep.running:
            sweep.end_a_leg()
            sweep.fill_lanes()
    restored = sweep.restored(tmp_path_factory.mktemp("trials"))
    restored.rng = random.Random(order)
    sweep.rng = random.Random(order)
    assert restored.run() == sweep.run()


def test_reason_names_rung_loss_and_what_it_was_compared_with() -> None:
    records = [
        TrialRecord(number=number, settings={}, rung_losses={1000: 2.0 + number}, paused_at=1000)
        for number in range(1, 7)
    ]
    assert Promotions(RUNGS, FACTOR, 6).reason(records[5], records) == (
        "loss 8.0000 of the branch at 1,000 tokens is not among the best 2 of 6 trials there (4.0000 or less)"
    )


def test_branch_takes_the_share_of_the_rung_that_the_trial_cools_down_over() -> None:
    promotions, record = Promotions(RUNGS, FACTOR, 6), TrialRecord(number=1, settings={}, rung_losses={1000: 4.0})
    pause = promotions.pause_of(record, cooldown=0.15)
    assert pause is not None
    assert (pause.at_tokens, pause.cooldown_tokens) == (3000, 450)


def test_trials_that_run_to_the_end_are_drawn_before_anything_is_known_of_them() -> None:
    drawn = [drawn_to_run_to_the_end(EarlyStoppingConfig(run_to_end=3), num_trials=30, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(numbers) == 3 and numbers <= set(range(1, 31)) for numbers in drawn)
    assert len(drawn_to_run_to_the_end(EarlyStoppingConfig(), num_trials=30, seed=0)) == 3


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        ((), "trunk-and-branch"),
        (("training.schedule=cosine",), "asha"),
        (("training.schedule=cosine", "early_stopping.method=none"), "none"),
        (("search.training.schedule.choice=[wsd, linear]",), "asha"),
    ],
)
def test_trunk_and_branch_is_the_default_where_the_schedule_allows_it(overrides: tuple[str, ...], method: str) -> None:
    assert tiny_sweep(*overrides).early_stopping.method == method


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.schedule=cosine", "use training.schedule: wsd, or early_stopping.method: asha"),
        ("training.cooldown=0.7", "use a cooldown of at most 0.67"),
    ],
)
def test_trunk_and_branch_without_a_trunk_is_refused_with_a_remedy(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_sweep(override, "early_stopping.method=trunk-and-branch")
