"""Constraints of a search space: as Python computes them, and nothing else runs."""

import ast
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep_examples import TINY
from sweeps.search_space.search_constraints import ConstraintFault, parse_constraint
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

KNOWN = ("model.width", "model.heads", "model.memory.heads", "training.batch_size", "training.schedule")
NUMBERS = st.integers(-50, 50).map(str) | st.sampled_from(["width", "heads", "training.batch_size", "2.5"])
TERMS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join).map("({})".format)
        | st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda one: f"{one[0]}({one[1]}, {one[2]})")
    ),
    max_leaves=6,
)
CONDITIONS = st.recursive(
    st.tuples(TERMS, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), TERMS).map(" ".join),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join).map("({})".format)
        | inner.map("not ({})".format)
    ),
    max_leaves=4,
).filter(lambda text: len(text) <= 300)


def _sweep(constraint: str, *more: str, **search: Any) -> SweepConfig:
    swept = {"training.learning_rate": {"log_uniform": [1e-3, 1e-2]}, **search}
    document = read_yaml(TINY)
    document.values["search"] = {**swept, "constraint": constraint}
    return resolve_sweep(document, more, source="tiny.yaml")


@given(CONDITIONS, st.integers(1, 64), st.integers(1, 8), st.integers(1, 128))
def test_a_constraint_says_as_python_does_whether_settings_meet_it(
    text: str, width: int, heads: int, batch: int
) -> None:
    values = {"model.width": width, "model.heads": heads, "training.batch_size": batch}
    constraint = parse_constraint(text, known=KNOWN, swept=["model.width"])
    try:
        # The text is one that the strategy above made.
        wanted = eval(text.replace("training.batch_size", "batch"), {"width": width, "heads": heads, "batch": batch})
    except ZeroDivisionError:
        return  # One of the two may stop before the division; the next test has the words.
    assert (constraint.fault(values.__getitem__) is None) == wanted


def test_a_constraint_that_cannot_be_computed_counts_as_broken_with_its_reason() -> None:
    constraint = parse_constraint("8 % (heads - 2) == 0", known=KNOWN, swept=KNOWN[1:2])
    fault = constraint.fault({"model.heads": 2}.__getitem__)
    assert fault is not None
    assert "heads=2" in fault
    assert "zero" in fault


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('id')",
        "(lambda: True)()",
        "[x for x in (1, 2)] == width",
        "width.__class__.__name__ == 'int'",
        "heads ** 999999999 > 1",
        "f'{width}' == '3'",
        "(width := 3) > 2",
        "width if heads else heads",
        "heads << 99999999 > 1",
        "open('/etc/passwd') == width",
        "max(width, key=heads) > 1",
        "width % heads",
        "width +",
        "",
        "(" * 200 + "width" + ")" * 200 + " > 1",
        "width > 1 and " * 40 + "heads > 1",
    ],
)
def test_no_text_but_a_condition_on_settings_is_a_constraint(text: str) -> None:
    with pytest.raises(ConstraintFault):
        parse_constraint(text, known=KNOWN, swept=KNOWN)


@pytest.mark.parametrize("text", ["'a' * 9 == width", "'%099999999d' % width == 'a'", "-'a' == width", "abs('a') > 1"])
def test_arithmetic_on_text_is_refused_before_it_is_done(text: str) -> None:
    constraint = parse_constraint(text, known=KNOWN, swept=KNOWN)
    fault = constraint.fault(lambda _: 10**9)
    assert fault is not None
    assert "is no number" in fault


def test_whole_numbers_do_not_grow_without_limit() -> None:
    constraint = parse_constraint("width * width * width * width > 0", known=KNOWN, swept=KNOWN)
    assert "too large" in (constraint.fault(lambda _: 10**9) or "")


def test_an_end_of_a_path_means_the_swept_setting_then_the_nearest_to_the_top() -> None:
    def meant(swept: list[str]) -> str:
        return parse_constraint("heads > 1", known=KNOWN, swept=swept).paths["heads"]

    assert meant([]) == "model.heads"
    assert meant(["model.memory.heads"]) == "model.memory.heads"
    assert meant(["model.heads", "model.memory.heads"]) == "model.heads"
    with pytest.raises(ConstraintFault, match=r"a\.heads or b\.heads"):
        parse_constraint("heads > 1", known=["a.heads", "b.heads"], swept=["a.heads", "b.heads"])


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ("widht % heads == 0", "`widht`, which is no setting"),
        ("width % heads", "gives a number"),
        ("batch_size > 64", "breaks the constraint batch_size > 64"),
    ],
)
def test_a_faulty_constraint_is_named_with_its_line(constraint: str, words: str) -> None:
    text = TINY.replace("search:\n", f"search:\n  constraint: {constraint!r}\n")
    with pytest.raises(SettingsFileError) as caught:
        resolve_sweep(read_yaml(text), source="tiny.yaml")
    assert words in str(caught.value)
    assert "line " in str(caught.value)


def test_below_search_and_beside_it_a_constraint_is_one_sweep() -> None:
    below = _sweep("batch_size * learning_rate < 0.5")
    document = read_yaml(TINY)
    document.values["search"] = {"training.learning_rate": {"log_uniform": [1e-3, 1e-2]}}
    document.values["constraint"] = ["batch_size * learning_rate < 0.5"]
    assert resolve_sweep(document, source="tiny.yaml") == below
    assert resolve_sweep(read_yaml(dump_sweep(below)), source="again.yaml") == below


@pytest.mark.parametrize("method", ["tpe", "gp", "random", "grid"])
def test_no_sampler_proposes_settings_that_break_a_constraint(method: str) -> None:
    from sweeps.search.settings_sampler import SettingsSampler

    sweep = _sweep(
        "batch_size * width <= 512 and width % heads == 0",
        f"searcher.method={method}",
        **{
            "training.batch_size": {"choice": [8, 16, 32]},
            "model.width": {"choice": [16, 24, 32, 48]},
            "model.heads": {"choice": [2, 3, 4]},
        },
    )
    sampler = SettingsSampler(sweep, worst_loss=7.0)
    proposals = [one[0] for _ in range(30) if (one := sampler.propose()) is not None]
    assert len(proposals) > 20
    for settings in proposals:
        run = sweep.run_config(settings)
        assert run.training.batch_size * run.model.width <= 512
        assert run.model.width % run.model.heads == 0


def test_candidates_of_the_full_length_are_the_combinations_that_meet_the_constraint() -> None:
    from sweeps.search.candidate_settings import candidate_settings

    sizes = {"training.batch_size": {"choice": [8, 16, 32]}, "model.width": {"choice": [16, 32, 64]}}
    document = read_yaml(TINY)
    document.values["search"] = {**sizes, "constraint": "batch_size * width < 1024"}
    found = candidate_settings(resolve_sweep(document, source="tiny.yaml"))
    wanted = [(b, w) for b, w in itertools.product([8, 16, 32], [16, 32, 64]) if b * w < 1024]
    assert sorted((one["training.batch_size"], one["model.width"]) for one in found) == wanted


def test_the_tree_of_a_constraint_is_data_alone() -> None:
    constraint = parse_constraint("width % heads == 0", known=KNOWN, swept=KNOWN)
    assert ast.unparse(constraint.condition) == "width % heads == 0"
    assert constraint.fault({"model.width": math.nan, "model.heads": 2}.__getitem__) is not None
