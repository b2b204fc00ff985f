"""Loads a fine-tuning for classification from YAML; reports all faults of the file at once."""

from collections.abc import Iterator
from typing import Any

import yaml

from sweeps.finetuning.finetune_config import SWEEPABLE, FinetuneConfig
from sweeps.settings.settings_faults import Fault, nearest
from sweeps.settings.settings_file import SettingsKind, objective_of
from sweeps.settings.yaml_lines import YamlDocument

RESOLVED_FILE = "finetune.yaml"
"""File in the output folder: the fine-tuning file with every default written out."""


def dump_finetuning(config: FinetuneConfig) -> str:
    """YAML with every default written out; loading it gives an equal fine-tuning."""
    plain = config.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def _search_faults(values: dict[str, Any], document: YamlDocument) -> Iterator[Fault]:
    search = values.get("search")
    for path in search if isinstance(search, dict) else ():
        location = f"search.{path}"
        if path not in SWEEPABLE:
            rule, remedy = "is not a setting that can be tried", nearest(path, SWEEPABLE)
            yield Fault(location, document.line_of(location), None, rule, remedy)


def _is_another(values: dict[str, Any]) -> str | None:
    if objective_of(values) in (None, "classification"):
        return None
    return "pretune train" if values.get("stages") or not values.get("search") else "pretune sweep"


FINETUNING = SettingsKind(
    FinetuneConfig,
    "a fine-tuning file",
    "sweeps/configs/traffic-classify.yaml",
    _is_another,
    _search_faults,
    lambda: SWEEPABLE,
)
