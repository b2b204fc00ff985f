"""Trials of earlier sweeps as prior knowledge: which are taken, how far they are trusted, what they save and cost."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from sweep_examples import record, tiny_sweep
from sweeps.analysis.spearman import spearman
from sweeps.horizon.setting_axes import axes_of
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import sweep_identity
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.search.full_length_search import Probe, full_length_search
from sweeps.search.prior_trials import (
    EarlierTrials,
    PriorKnowledge,
    SearchFromError,
    prior_knowledge,
)
from sweeps.search.settings_sampler import SettingsSampler
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep

BATCHES = (4, 8, 16, 32, 64, 128, 256)
OPTIMUM, NEAR_IT, FAR_FROM_IT = (-2.6, 4.0), (-2.4, 4.5), (-1.2, 7.5)
"""Logarithms of learning rate and batch size: of this sweep, of a related one, of a misleading one."""
NUM_SWEEPS = 24


def space(*overrides: str, trials: int = 12, seed: int = 0) -> SweepConfig:
    return tiny_sweep(
        "search.training.learning_rate={log_uniform: [1e-4, 1e-1]}",
        f"search.training.batch_size={{choice: {list(BATCHES)}}}",
        "search.training.micro_batch_size={choice: [4]}",
        f"budget.trials={trials}",
        f"searcher.seed={seed}",
        *overrides,
    )


def loss(settings: dict[str, Any], at: tuple[float, float], *, level: float = 4.0) -> float:
    """A bowl over the logarithms, as sweeps of these two settings measure."""
    rate, batch = math.log10(settings["training.learning_rate"]), math.log2(settings["training.batch_size"])
    return level + 2.4 * (rate - at[0]) ** 2 + 0.05 * (batch - at[1]) ** 2


def at_random(rng: np.random.Generator) -> dict[str, Any]:
    rate, batch = float(10 ** rng.uniform(-4, -1)), int(rng.choice(BATCHES))
    return {"training.learning_rate": rate, "training.batch_size": batch, "training.micro_batch_size": 4}


def earlier(at: tuple[float, float], *, seed: int = 0, differences: tuple[str, ...] = ()) -> EarlierTrials:
    rng = np.random.default_rng(seed)
    settings = tuple(at_random(rng) for _ in range(16))
    return EarlierTrials("earlier-1", settings, tuple(loss(one, at, level=6.0) for one in settings), differences)


def knowledge(*sweeps: EarlierTrials) -> PriorKnowledge:
    return PriorKnowledge(axes_of(space().search), sweeps)


def own_trials(count: int, at: tuple[float, float] = OPTIMUM, seed: int = 7) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    drawn = [at_random(rng) for _ in range(count)]
    return [record(number, loss=loss(one, at), settings=one) for number, one in enumerate(drawn, start=1)]


def searched(at: tuple[float, float] | None, seed: int) -> list[float]:
    """Distance of the best loss so far from the lowest one, after each trial of a sweep by TPE."""
    sweep = space(seed=seed)
    prior = None if at is None else knowledge(earlier(at, seed=100 + seed))
    proposing = SettingsSampler(sweep, worst_loss=9.0, prior=prior)
    rng = np.random.default_rng(seed)
    gaps: list[float] = []
    for number in range(1, 13):
        proposal = proposing.propose()
        assert proposal is not None
        settings, handle = proposal
        proposing.launched(record(number, None, settings=settings), handle)
        found = loss(settings, OPTIMUM)
        proposing.ended(record(number, loss=found + rng.normal(0, 0.01), settings=settings))
        gaps.append(min([found - 4.0, *gaps[-1:]]))
    return gaps


@pytest.mark.long
def test_a_good_prior_halves_the_gap_and_a_misleading_one_costs_little() -> None:
    without, good, misleading = (
        np.mean([searched(at, seed) for seed in range(NUM_SWEEPS)], axis=0) for at in (None, NEAR_IT, FAR_FROM_IT)
    )
    # Mean gaps in nats after 4, 8 and 12 trials.
    told = f"without {without[3::4]}, good {good[3::4]}, misleading {misleading[3::4]}"
    assert good[3] < 0.6 * without[3], told
    assert good[-1] < 0.8 * without[-1], told
    assert misleading[-1] < without[-1] + 0.05, told


def test_the_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = rng.integers(0, 6, 9), rng.normal(size=9)
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0


def test_trust_begins_with_a_discount_for_each_difference_and_then_follows_the_own_trials() -> None:
    good = earlier(NEAR_IT)
    discounted = earlier(NEAR_IT, differences=("another corpus", "another model"))
    misleading = earlier(FAR_FROM_IT)
    for one, first in ((good, 1.0), (discounted, 0.25), (misleading, 1.0)):
        assert knowledge(one).trust(own_trials(2))["earlier-1"].value == first
    after = {name: knowledge(one).trust(own_trials(8))["earlier-1"] for name, one in (
        ("good", good), ("discounted", discounted), ("misleading", misleading)
    )}  # fmt: skip
    assert after["good"].value > 0.6
    assert after["discounted"].value > 0.4, "eight trials that agree overrule a discount"
    assert not after["misleading"].is_used
    assert knowledge(misleading).observations(own_trials(8)) == []


def test_observations_are_spread_over_the_ranks_and_have_losses_of_this_sweep() -> None:
    own = own_trials(8)
    found = knowledge(earlier(NEAR_IT)).observations(own)
    values = [value for _, value in found]
    losses = [one.loss for one in own if one.loss is not None]
    assert values == sorted(values)
    assert min(losses) <= values[0] < values[-1] <= max(losses)
    fading = knowledge(earlier(NEAR_IT)).observations(own, fades=True)
    assert 0 < len(fading) < len(found)


def test_an_own_trial_nearby_replaces_an_earlier_one() -> None:
    prior = knowledge(earlier(NEAR_IT))
    (settings, _), *_ = prior.observations([])
    own = record(1, loss=5.0, settings=settings)
    assert settings not in [one for one, _ in prior.observations([own])]


def test_a_trial_of_start_with_that_lacks_a_setting_is_left_aside() -> None:
    own = [*own_trials(4), record(9, loss=5.0, settings={"training.learning_rate": 1e-3})]
    assert knowledge(earlier(NEAR_IT)).trust(own)["earlier-1"].num_own == 4


def test_every_second_of_the_first_probes_of_a_full_length_search_comes_from_the_prior() -> None:
    sweep = space("early_stopping.method=full-length", "budget.tokens_per_trial=4M", trials=40)
    plain = full_length_search(sweep)
    informed = full_length_search(sweep, knowledge(earlier(NEAR_IT)))
    known: list[TrialRecord] = []
    gaps: dict[str, list[float]] = {"prior": [], "spread": []}
    for number in range(1, 7):
        step = informed.next(known, may_start=lambda _: True)
        assert isinstance(step, Probe)
        assert isinstance(plain.next(known, may_start=lambda _: True), Probe)
        full = informed._in_full_length([step.settings], informed.rungs[0])[0]
        gaps["prior" if number % 2 else "spread"].append(loss(full, NEAR_IT) - 4.0)
        known.append(record(number, Outcome.STOPPED, settings=step.settings, rung_losses={informed.rungs[0]: 9.0}))
    assert max(gaps["prior"]) < np.median(gaps["spread"]), gaps


class Folder:
    """A results folder with one earlier sweep."""

    def __init__(self, results: Path, *overrides: str, fingerprint: str = "x") -> None:
        sweep = space("name=earlier", *overrides)
        self.path = results / "earlier-1"
        self.path.mkdir(parents=True)
        (self.path / "sweep.yaml").write_text(dump_sweep(sweep))
        store = TrialStore(self.path / "trials")
        for one in own_trials(5, NEAR_IT):
            store.save(one)
        store.save(record(6, Outcome.FAILED, settings=at_random(np.random.default_rng(1))))
        outside = at_random(np.random.default_rng(2)) | {"training.learning_rate": 0.9}
        store.save(record(7, loss=5.0, settings=outside))
        summary = {"status": "finished", "wall_s": 1.0, "data": {"fingerprint": fingerprint}}
        (self.path / "summary.json").write_text(json.dumps(summary))


def known_in(results: Path, *overrides: str) -> EarlierTrials:
    found = prior_knowledge(space("search_from=[earlier-1]", *overrides), results, data_fingerprint="x")
    assert found is not None
    (one,) = found.earlier
    return one


def test_earlier_trials_with_a_loss_in_the_space_are_taken_and_the_others_counted(tmp_path: Path) -> None:
    Folder(tmp_path)
    found = known_in(tmp_path)
    assert (len(found.losses), found.num_outside, found.differences) == (5, 1, ())
    assert found.in_words == ("5 trials of earlier-1 as prior knowledge, first trust 1; 1 lie outside the search space")
    assert prior_knowledge(space(), tmp_path, data_fingerprint="x") is None


@pytest.mark.parametrize(
    ("overrides", "fingerprint", "difference"),
    [
        ((), "y", "another corpus"),
        (("tokenizer.vocabulary=2000",), "y", "another vocabulary"),
        (("model.width=64",), "x", "another model"),
        (("training.weight_decay=0.5",), "x", "other settings of training"),
        (("budget.tokens_per_trial=60k",), "x", "another length of training"),
    ],
)
def test_a_difference_that_may_move_the_best_settings_halves_the_first_trust(
    tmp_path: Path, overrides: tuple[str, ...], fingerprint: str, difference: str
) -> None:
    Folder(tmp_path, *overrides, fingerprint=fingerprint)
    found = known_in(tmp_path)
    assert (found.differences, found.trust) == ((difference,), 0.5)


def test_folders_that_cannot_be_used_are_all_named_with_the_reason(tmp_path: Path) -> None:
    Folder(tmp_path, "search.training.beta2={uniform: [0.9, 0.99]}")
    (tmp_path / "empty").mkdir()
    causal = tmp_path / "causal-1"
    causal.mkdir()
    text = dump_sweep(space("model.family=decoder", "objective=causal_lm"))
    (causal / "sweep.yaml").write_text(text)
    sweep = space("search_from=[earlier-1, empty, causal-1]")
    with pytest.raises(SearchFromError) as refused:
        prior_knowledge(sweep, tmp_path, data_fingerprint="x")
    first, second, third = str(refused.value).splitlines()
    assert first == (
        "search_from: earlier-1: it searches training.beta2, which this sweep does not. Take it out of the list."
    )
    assert "search_from: empty: it is no results folder of a sweep" in second
    assert "search_from: causal-1: its objective is causal_lm, and that of this sweep masked_lm" in third


def test_a_damaged_earlier_sweep_is_a_fault_of_its_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (folder.path / "summary.json").write_text("{")
    with pytest.raises(SearchFromError, match=r"search_from: earlier-1: it cannot be read: .*summary.json"):
        known_in(tmp_path)


def test_a_method_that_learns_from_no_trial_refuses_earlier_ones() -> None:
    for method in ("grid", "random"):
        with pytest.raises(SettingsFileError, match="search_from has no meaning with searcher"):
            space("search_from=[a]", f"searcher.method={method}")


def test_a_sweep_without_earlier_ones_keeps_its_identity_and_its_file() -> None:
    assert "search_from" not in dump_sweep(space())
    assert sweep_identity(space(), "x") != sweep_identity(space("search_from=[a]"), "x")
