"""Every setting that a file can hold is explained, and its values are told as pydantic takes them."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, BeforeValidator, Field

from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import Count, NumBytes, Settings, Share
from sweeps.finetuning.finetune_config import FinetuneConfig
from sweeps.search_space.distribution import Distribution
from sweeps.settings.field_docs import FieldDoc, field_docs, values_in_words
from sweeps.settings.settings_faults import models_in
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import sweepable_paths
from sweeps.settings.yaml_lines import parse_value

_ROOTS: tuple[type[BaseModel], ...] = (SweepConfig, FinetuneConfig, RunConfig)
_WORDS_OF_NO_USE = r"\bNone\b|\bso many\b|\bgoes? on\b|\bgo on\b|\bstands? in\b|\bhas not\b|\bhave not\b|\bto tell\b"
"""YAML writes null; the others read as translated."""


def models(roots: tuple[type[BaseModel], ...]) -> list[type[BaseModel]]:
    """Every settings class that is reached from the fields of these."""
    found: dict[type[BaseModel], None] = {}
    left = list(roots)
    while left:
        model = left.pop()
        if model not in found:
            found[model] = None
            left += [section for field in model.model_fields.values() for section in models_in(field.annotation)]
    return list(found)


def descriptions() -> Iterator[tuple[str, str]]:
    for model in models(_ROOTS):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field.description or ""


def test_every_field_of_every_settings_class_has_a_docstring() -> None:
    found = list(descriptions())
    assert len(found) > 150
    assert [name for name, text in found if not text.strip()] == []


def test_every_docstring_is_made_of_sentences_for_an_author_of_yaml() -> None:
    for name, text in descriptions():
        assert len(text.split()) >= 4, name
        assert text.strip()[-1] in ".`", name
        assert not re.search(_WORDS_OF_NO_USE, text), f"{name}: {text}"


def test_every_path_that_can_be_swept_is_explained() -> None:
    explained = {doc.path for doc in field_docs(SweepConfig)}
    assert set(sweepable_paths()) - explained == set()


def test_a_section_comes_before_its_settings_and_a_distribution_below_any_setting() -> None:
    paths = [doc.path for doc in field_docs(SweepConfig)]
    assert paths.index("training") < paths.index("training.lora") < paths.index("training.lora.rank")
    assert "search.SETTING.log_uniform" in paths
    assert len(paths) == len(set(paths))


def _examples() -> list[str]:
    docs: list[FieldDoc] = [*field_docs(SweepConfig), *field_docs(FinetuneConfig)]
    return [example for doc in docs for example in re.findall(r"Example: `(.*)`", doc.text)]


def test_every_distribution_has_an_example() -> None:
    kinds = {doc.path.rpartition(".")[2]: doc.text for doc in field_docs(SweepConfig) if ".SETTING." in doc.path}
    assert set(kinds) == set(Distribution.model_fields)
    for kind, text in kinds.items():
        assert re.search(rf"[{{ ]{kind}: ", text)


@pytest.mark.parametrize("example", dict.fromkeys(_examples()))
def test_every_example_of_a_search_space_is_one_of_a_setting_that_can_be_swept(example: str) -> None:
    for path, distribution in parse_value(example).items():
        assert path in set(sweepable_paths())
        Distribution.model_validate(distribution)


def _shout(text: str) -> str:
    return text


class _Values(Settings):
    count: Count = 1
    maybe: Count | None = None
    size: NumBytes = 3 * 2**20
    share: Annotated[Share, Field(gt=0)] = 0.5
    open: Annotated[float, Field(gt=0, lt=1)] = 0.25
    word: Literal["a", "b"] | None = None
    names: Annotated[tuple[str, ...], Field(min_length=2)]
    shown: Annotated[str, BeforeValidator(_shout), Field(examples=["90min"])] | Literal["auto"] = "auto"
    is_on: bool = False


@pytest.mark.parametrize(
    ("name", "values", "default"),
    [
        ("count", "whole number from 1", "1"),
        ("maybe", "whole number from 1 or null", "null"),
        ("size", "number of bytes (24GiB)", "3MiB"),
        ("share", "share above 0 to 1", "0.5"),
        ("open", "number above 0 to below 1", "0.25"),
        ("word", "one of a, b, null", "null"),
        ("names", "list of texts, at least 2", None),
        ("shown", "text (90min) or auto", "auto"),
        ("is_on", "true or false", "false"),
    ],
)
def test_values_and_default_are_told_in_words(name: str, values: str, default: str | None) -> None:
    doc = next(doc for doc in field_docs(_Values) if doc.path == name)
    assert (doc.values, doc.default, doc.is_required) == (values, default, default is None)


def test_a_type_without_limits_is_told_by_its_kind() -> None:
    assert values_in_words(int) == "whole number"
    assert values_in_words(tuple[float, float]) == "[low, high], two numbers"
