"""Search spaces in the syntax of W&B, Optuna, Ray Tune and Hydra: each is refused with the line that pretune reads."""

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep_examples import TINY
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

HEAD, _, REST = TINY.partition("search:\n")
BUDGET = REST[REST.index("budget:") :]
LINE = HEAD.count("\n") + 2
RATE, BATCH, LAYERS, MASKING = (
    "training.learning_rate",
    "training.batch_size",
    "model.layers",
    "objective.masked_lm.masking_rate",
)


def resolve(search: str, *overrides: str) -> SweepConfig:
    return resolve_sweep(read_yaml(f"{HEAD}search:\n{search}\n{BUDGET}"), overrides, source="sweep.yaml")


def faults_of(search: str, *overrides: str) -> list[str]:
    with pytest.raises(SettingsFileError) as caught:
        resolve(search, *overrides)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("path", "written", "ours"),
    [
        # W&B
        (BATCH, "{values: [16, 32]}", "{choice: [16, 32]}"),
        (BATCH, "{values: [16, 32], probabilities: [0.5, 0.5]}", "{choice: [16, 32]}"),
        (BATCH, "{value: 16}", "{choice: [16]}"),
        (BATCH, "{min: 8, max: 64}", "{int_uniform: [8, 64]}"),
        (RATE, "{min: 0.001, max: 1}", "{uniform: [0.001, 1]}"),
        (RATE, "{distribution: log_uniform_values, min: 1e-5, max: 1e-2}", "{log_uniform: [1e-05, 0.01]}"),
        (RATE, "{distribution: log_uniform, min: -9.21034, max: -4.60517}", "{log_uniform: [0.0001, 0.01]}"),
        (BATCH, "{distribution: q_log_uniform_values, q: 8, min: 32, max: 256}", "{log_int_uniform: [32, 256]}"),
        (MASKING, "{distribution: q_uniform, q: 0.1, min: 0.1, max: 0.4}", "{choice: [0.1, 0.2, 0.3, 0.4]}"),
        ("training.schedule", "{distribution: categorical, values: [wsd, cosine]}", "{choice: [wsd, cosine]}"),
        ("training.activation_checkpointing", "{values: [true, false]}", "{choice: [true, false]}"),
        # Ray Tune
        (RATE, "tune.loguniform(1e-4, 1e-2)", "{log_uniform: [0.0001, 0.01]}"),
        (MASKING, "uniform(0.1, 0.5)", "{uniform: [0.1, 0.5]}"),
        (MASKING, "tune.quniform(0.1, 0.4, 0.1)", "{choice: [0.1, 0.2, 0.3, 0.4]}"),
        (BATCH, "tune.randint(1, 10)", "{int_uniform: [1, 9]}"),
        (BATCH, "tune.choice([8, 16])", "{choice: [8, 16]}"),
        (BATCH, "{grid_search: [16, 32]}", "{choice: [16, 32]}"),
        # Hydra
        (LAYERS, "range(1,10)", "{int_uniform: [1, 9]}"),
        (LAYERS, "range(1,10,2)", "{choice: [1, 3, 5, 7, 9]}"),
        (LAYERS, "int(interval(1, 8))", "{int_uniform: [1, 8]}"),
        ("training.schedule", "choice(wsd,cosine)", "{choice: [wsd, cosine]}"),
        ("training.warmup", "interval(0,1)", "{uniform: [0, 1]}"),
        (RATE, "tag(log, interval(1e-5, 1e-1))", "{log_uniform: [1e-05, 0.1]}"),
        (BATCH, "8,16,32", "{choice: [8, 16, 32]}"),
        # Optuna
        (RATE, "{type: float, low: 1e-5, high: 1e-2, log: true}", "{log_uniform: [1e-05, 0.01]}"),
        (BATCH, "{type: categorical, choices: [8, 16]}", "{choice: [8, 16]}"),
        (BATCH, "{suggest_int: {low: 8, high: 32, step: 8}}", "{choice: [8, 16, 24, 32]}"),
        (BATCH, "{method: suggest_int, name: batch, low: 8, high: 32}", "{int_uniform: [8, 32]}"),
        (RATE, "'trial.suggest_float(\"lr\", 1e-5, 1e-2, log=True)'", "{log_uniform: [1e-05, 0.01]}"),
        (RATE, "FloatDistribution(low=1e-5, high=1e-2, log=True)", "{log_uniform: [1e-05, 0.01]}"),
        # Ours, shortened
        (BATCH, "{choice: 8}", "{choice: [8]}"),
        (BATCH, "8", "{choice: [8]}"),
        (BATCH, "[8, 16, 32]", "{choice: [8, 16, 32]}"),
        (MASKING, "[0.1, 0.2]", "{choice: [0.1, 0.2]}, or objective.masked_lm.masking_rate: {uniform: [0.1, 0.2]}"),
        (MASKING, "{uniform: {min: 0.1, max: 0.2}}", "{uniform: [0.1, 0.2]}"),
    ],
)
def test_syntax_of_another_tool_is_refused_with_its_line_in_our_syntax_and_that_line_loads(
    path: str, written: str, ours: str
) -> None:
    (fault,) = faults_of(f"  {path}: {written}")
    assert re.sub(r" = ('.*'|\".*\"|\d+): is", ": is", fault) == (
        f"line {LINE}: search.{path}: is not in the syntax of a swept setting; write {path}: {ours}."
    )
    for line in ours.split(f", or {path}: "):
        resolve(f"  {path}: {line}")


@pytest.mark.parametrize(
    ("written", "place", "ours"),
    [
        ("  training: {learning_rate: {log_uniform: [1e-4, 1e-2]}}", RATE, "{log_uniform: [0.0001, 0.01]}"),
        ("  objective: {masked_lm: {masking_rate: {min: 0.1, max: 0.2}}}", MASKING, "{uniform: [0.1, 0.2]}"),
        ("  objective.masked_lm: {masking_rate: {choice: [0.1]}}", MASKING, "{choice: [0.1]}"),
        ("  training: {parameters: {batch_size: {values: [8]}}}", "training.parameters.batch_size", "{choice: [8]}"),
    ],
)
def test_setting_in_a_section_of_search_is_refused_with_its_dotted_line(written: str, place: str, ours: str) -> None:
    (fault,) = faults_of(written)
    path = place.replace(".parameters", "")
    assert fault == f"line {LINE}: search.{place}: is in a section of `search`; write {path}: {ours}."
    resolve(f"  {path}: {ours}")


def test_all_faults_are_listed_at_once_also_those_of_the_values_that_are_meant() -> None:
    faults = faults_of("  training:\n    warmup: {values: [0.1, 2]}\n    learning_rte: {min: 0.1, max: 0.5}")
    assert faults == [
        f"line {LINE + 1}: search.training.warmup: is in a section of `search`; write training.warmup: "
        "{choice: [0.1, 2]}.",
        f"line {LINE + 1}: search.training.warmup = 2: should be less than or equal to 1.",
        f"line {LINE + 2}: search.training.learning_rte: is in a section of `search`; write training.learning_rte: "
        "{uniform: [0.1, 0.5]}.",
        f"line {LINE + 2}: search.training.learning_rte: is not a setting that can be swept; did you mean "
        "training.learning_rate?.",
    ]


def test_setting_without_its_section_is_written_with_it() -> None:
    assert f"write {RATE}: {{uniform: [0.1, 0.5]}}" in faults_of("  learning_rate: {min: 0.1, max: 0.5}")[0]


@pytest.mark.parametrize(
    ("search", "fault"),
    [
        (f"  {RATE}: {{distribution: normal, mu: 0.1, sigma: 3}}", f"write {RATE}: {{choice: [..]}} with values, or"),
        (f"  {RATE}: normal(0, 1)", f"write {RATE}: {{choice: [..]}} with values, or {RATE}: {{uniform: [low, high]}}"),
        (f"  {RATE}:", f"write {RATE}: {{choice: [..]}} with values, or"),
        (
            "  training: {learning_rate: null}",
            f"is in a section of `search`; write {RATE}: {{choice: [..]}} with values",
        ),
        (f"  {RATE}: {{choice: [0.1]}}\n  training: {{learning_rate: {{choice: [0.1]}}}}", "is given twice; keep one"),
        (f"  {RATE}: {{unifrom: [0.1, 0.5]}}", f"search.{RATE}.unifrom: is not a setting; did you mean uniform?"),
        (f"  {RATE}: {{uniform: [0.5, 0.1]}}", "the lower end 0.5 is not below the upper end 0.1"),
        (f"  {RATE}: {{uniform: [0.1, 0.5, 3]}}", "has 3 values and may have 2"),
        (f"  - {RATE}", "search: is not a section; see `pretune explain search`"),
    ],
)
def test_distribution_that_no_tool_has_names_what_is_wrong(search: str, fault: str) -> None:
    (found,) = faults_of(search)
    assert fault in found


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (f"search.{BATCH}.values=[8, 16]", f"write {BATCH}: {{choice: [8, 16]}}"),
        (f"search.{BATCH}=8,16", f"write {BATCH}: {{choice: [8, 16]}}"),
        ("model=5", "model = 5: is not a section; its settings are class, "),
        ("stages=5", "stages = 5: is not a list; see `pretune explain stages`"),
        ("stages=[{tokns: 5k, sequence_length: 32}]", "stages.0.tokns: is not a setting; did you mean tokens?"),
        ("parameters={training.batch_size: 8}", "parameters: is not a setting; name it search"),
    ],
)
def test_value_of_the_wrong_kind_is_a_fault_that_names_the_right_one(override: str, fault: str) -> None:
    assert any(fault in one for one in faults_of(f"  {RATE}: {{choice: [0.1]}}", override))


PARTS = [*"()[]{},'a\\\0é", "tune.", "loguniform", "range", "choice", "tag", "1e-4", "-9", "1e400", "q=", "log",
         "=True", ": ", "min", "max", "values", "lambda: 0", "9" * 30]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
VALUES = TEXTS | st.lists(TEXTS | st.floats(allow_nan=False) | st.integers(), max_size=3)
KEYS = st.sampled_from(["min", "max", "values", "distribution", "log", "q", "uniform", "range", "choice", "a"])


@settings(max_examples=100, derandomize=True)
@given(value=VALUES | st.dictionaries(KEYS, VALUES | st.floats() | st.integers(), max_size=3))
def test_any_search_gives_only_our_errors(value: Any) -> None:
    document = read_yaml(TINY)
    assert isinstance(document.values, dict)
    document.values["search"] = {RATE: value, "training": {"warmup": value}}
    with suppress(SettingsFileError):
        resolve_sweep(document, source="sweep.yaml")
