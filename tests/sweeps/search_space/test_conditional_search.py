"""Settings that are searched only where another has a certain value."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep_examples import TINY
from sweeps.search_space.conditional_search import distinct, num_settings, settled
from sweeps.search_space.distribution import Distribution
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

EXPERTS = "model.mixture.experts"
FORM = "model.feed_forward"
SPACE = {
    FORM: Distribution(choice=("gelu", "moe", "none")),
    EXPERTS: Distribution(choice=(2, 8), when={FORM: ("moe",)}),
    "model.mixture.balance_weight": Distribution(choice=(0.01, 0.1), when={EXPERTS: (8,)}),
}
FILE: dict[str, Any] = {FORM: "gelu", EXPERTS: 4, "model.mixture.balance_weight": 0.05}


def _sweep(search: dict[str, Any], *overrides: str) -> SweepConfig:
    document = read_yaml(TINY)
    document.values["search"] = search
    return resolve_sweep(document, overrides, source="tiny.yaml")


MOE: dict[str, Any] = {
    FORM: {"choice": ["gelu", "moe"]},
    EXPERTS: {"choice": [2, 8], "when": {FORM: "moe"}},
}


@given(st.sampled_from(["gelu", "moe", "none"]), st.sampled_from([2, 8]), st.sampled_from([0.01, 0.1]))
def test_settled_settings_have_the_value_of_the_file_where_the_condition_fails(
    form: str, experts: int, weight: float
) -> None:
    found = settled(SPACE, {FORM: form, EXPERTS: experts, "model.mixture.balance_weight": weight}, FILE.__getitem__)
    assert found[EXPERTS] == (experts if form == "moe" else FILE[EXPERTS])
    is_weighted = form == "moe" and experts == 8
    assert found["model.mixture.balance_weight"] == (weight if is_weighted else 0.05)
    assert settled(SPACE, found, FILE.__getitem__) == found


def test_settings_that_differ_in_a_value_without_effect_count_once() -> None:
    # gelu, none, moe with 2 experts, moe with 8 experts at two weights.
    assert num_settings(SPACE, None, FILE.__getitem__) == 5
    points = [{FORM: "none", EXPERTS: experts, "model.mixture.balance_weight": 0.1} for experts in (2, 8)]
    assert len(list(distinct(SPACE, points, FILE.__getitem__))) == 1


def test_a_grid_trains_each_distinct_setting_once() -> None:
    from sweeps.search.settings_sampler import SettingsSampler

    sweep = _sweep(MOE, "searcher.method=grid")
    sampler = SettingsSampler(sweep, worst_loss=7.0)
    found = []
    while (one := sampler.propose()) is not None:
        found.append(one[0])
    assert len(found) == sweep.num_trials == 3
    assert {(one[FORM], one[EXPERTS]) for one in found} == {("gelu", 4), ("moe", 2), ("moe", 8)}


@pytest.mark.parametrize("method", ["tpe", "gp", "random"])
def test_a_sampler_learns_from_trials_whose_condition_fails(method: str) -> None:
    from sweep_examples import record
    from sweeps.search.settings_sampler import SettingsSampler

    rate = "training.learning_rate"
    sweep = _sweep({**MOE, rate: {"log_uniform": [1e-4, 1e-1]}}, f"searcher.method={method}", "budget.trials=60")
    sampler = SettingsSampler(sweep, worst_loss=7.0)
    for number in range(40):
        proposal = sampler.propose()
        assert proposal is not None
        settings, handle = proposal
        assert settings[EXPERTS] == 4 if settings[FORM] == "gelu" else settings[EXPERTS] in (2, 8)
        loss = (1.0 if settings[FORM] == "gelu" else 3.0) + abs(settings[rate] - 0.01)
        one = record(number, loss=loss, settings=settings)
        sampler.launched(one, handle)
        sampler.ended(one)
    if method != "random":
        late = [sampler.propose() for _ in range(8)]
        assert sum(one is not None and one[0][FORM] == "gelu" for one in late) >= 5


def test_a_condition_survives_a_round_trip_and_names_itself_in_the_plan() -> None:
    sweep = _sweep(MOE)
    assert resolve_sweep(read_yaml(dump_sweep(sweep)), source="again.yaml") == sweep
    assert str(sweep.search[EXPERTS]) == "one of 2, 8, where model.feed_forward is moe"


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({EXPERTS: {"choice": [2, 8], "when": {FORM: "moe"}}}, "which is not swept"),
        ({**MOE, EXPERTS: {"choice": [2], "when": {FORM: "mixture"}}}, "when waits for model.feed_forward = mixture"),
        ({**MOE, FORM: {"choice": ["gelu", "moe"], "when": {EXPERTS: 2}}}, "goes in a circle"),
        ({**MOE, EXPERTS: {"when": {FORM: "moe"}}}, "give exactly one of"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(search: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsFileError, match=words):
        _sweep(search)
