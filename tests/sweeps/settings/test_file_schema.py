"""The schema of a sweep file says of each setting what the loader says, as far as a schema can."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, TypeAdapter, ValidationError
from typer.testing import CliRunner

from command import ROOT
from sweep_examples import TINY
from sweeps.commands.cli import app
from sweeps.settings.file_schema import sweep_file_schema
from sweeps.settings.settings_faults import SettingsFileError, models_in
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

SCHEMA = sweep_file_schema()
WHOLE = Draft202012Validator(SCHEMA)
SHIPPED = sorted(path for path in (ROOT / "sweeps/configs").glob("*.yaml") if "classify" not in path.name)


def sections(config: type[BaseModel], found: dict[str, type[BaseModel]] | None = None) -> dict[str, type[BaseModel]]:
    """All sections of a sweep file, by the name of their class."""
    found = {} if found is None else found
    for field in config.model_fields.values():
        for model in models_in(field.annotation):
            if model.__name__ not in found:
                found[model.__name__] = model
                sections(model, found)
    return found


SECTIONS = sections(SweepConfig)
LEAVES = [
    (name, key)
    for name, model in SECTIONS.items()
    for key, field in model.model_fields.items()
    if not list(models_in(field.annotation))
]

# Words that pydantic would read as another type are no case: an editor sees the types of YAML.
WORDS = st.sampled_from(
    ["auto", "none", "banana", "", "wsd", "gelu", "cpu", "20M", "1.5k", "24GiB", "800MB", "2%", "150%", "90min", "3h"]
)
NUMBERS = st.integers(-3, 2**40) | st.floats(-1e6, 1e6)
VALUES = st.none() | NUMBERS | WORDS | st.lists(NUMBERS | WORDS, max_size=3)


@cache
def loader_of(section: str, key: str) -> TypeAdapter[Any]:
    """The loader's view of one setting, its neighbours left aside."""
    field = SECTIONS[section].model_fields[key]
    return TypeAdapter(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)


@cache
def validator_of(section: str, key: str) -> Draft202012Validator:
    """The schema's view of it."""
    places = SCHEMA["$defs"][section]
    here = places if "properties" in places else places["anyOf"][1]
    name = SECTIONS[section].model_fields[key].alias or key  # As a file has it: class is a word of Python.
    return Draft202012Validator({**here["properties"][name], "$defs": SCHEMA["$defs"]})


def takes(section: str, key: str, value: Any) -> bool | None:
    """Whether the loader takes a value; None if only a rule of our own refuses it, which a schema need not say."""
    try:
        loader_of(section, key).validate_python(value)
    except ValidationError as error:
        return None if any(detail["type"] in ("value_error", "assertion_error") for detail in error.errors()) else False
    return True


@pytest.mark.parametrize(("section", "key"), LEAVES, ids=[".".join(leaf) for leaf in LEAVES])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(value=VALUES)
def test_schema_and_loader_take_the_same_values_of_each_setting(section: str, key: str, value: Any) -> None:
    if is_number_for_truth(SECTIONS[section], key, value):
        return
    assert takes(section, key, value) in (validator_of(section, key).is_valid(value), None), (section, key, value)


def is_number_for_truth(model: type[BaseModel], key: str, value: Any) -> bool:
    """0 and 1 are truth values to pydantic, and numbers to a schema."""
    return model.model_fields[key].annotation in (bool, bool | None) and value in (0, 1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    section=st.sampled_from(sorted(SweepConfig.model_fields)), key=st.from_regex(r"[a-w][a-z_]{3,9}", fullmatch=True)
)
def test_an_unknown_key_is_refused_by_both_in_every_section(section: str, key: str) -> None:
    values = read_yaml(TINY).values
    assert isinstance(values, dict)
    models = list(models_in(SweepConfig.model_fields[section].annotation))
    if not models or section in ("search", "stages", "start", "objective") or key in models[0].model_fields:
        return
    changed = {**values, section: {**(values.get(section) or {}), key: 1}}
    assert not WHOLE.is_valid(changed)
    with pytest.raises(SettingsFileError, match=f"{section}.{key}: is not a setting"):
        resolve_sweep(read_yaml(json.dumps(changed)), source="x")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path: Path) -> None:
    assert [error.message for error in WHOLE.iter_errors(read_yaml(path.read_text()).values)] == []


@pytest.mark.parametrize(
    "fault",
    ["trainings: {}", "search: {training.learning_rates: {choice: [1]}}", "objective: causal", "sizes: {full: 3}"],
)
def test_faults_that_a_schema_can_say_are_said(fault: str) -> None:
    values = {**read_yaml(TINY).values, **read_yaml(fault).values}
    assert not WHOLE.is_valid(values)
    with pytest.raises(SettingsFileError):
        resolve_sweep(read_yaml(json.dumps(values)), source="x")


def test_every_setting_has_its_docstring_and_extensions_are_allowed() -> None:
    lacking = [
        (name, key)
        for name, section in SCHEMA["$defs"].items()
        for key, one in section.get("properties", {}).items()
        if not one.get("description")
    ]
    assert lacking == []
    assert WHOLE.is_valid({**read_yaml(TINY).values, "x-mine": [1]})


def test_the_command_prints_the_schema() -> None:
    done = CliRunner().invoke(app, ["schema"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == SCHEMA
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("learning_rate: 0.001", "it belongs elsewhere: training.learning_rate"),
        ("training: {masking_rate: 0.2}", "it belongs elsewhere: objective.masked_lm.masking_rate"),
        ("training: {learning_rates: 0.1}", "did you mean learning_rate?"),
        ("budgets: {}", "did you mean budget?"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_name_or_the_place_where_it_lives(key: str, remedy: str) -> None:
    values = {**read_yaml(TINY).values, **read_yaml(key).values}
    with pytest.raises(SettingsFileError, match=re.escape(remedy)):
        resolve_sweep(read_yaml(json.dumps(values)), source="x")
