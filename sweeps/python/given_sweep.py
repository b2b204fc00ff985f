"""A sweep as Python gives it: the path of a file, a dictionary like a file, or a resolved configuration."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from core.user_code.class_source import CodeNotFoundError
from data_pipeline.schema.user_errors import InputFault
from sweeps.python.foreign_spaces import in_our_terms, is_grid
from sweeps.search_space.distribution import Distribution
from sweeps.settings.class_of_file import permit_class, with_class_source
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file, resolve_sweep
from sweeps.settings.yaml_lines import YamlDocument, read_yaml

GivenSweep = str | PathLike[str] | Mapping[str, Any] | SweepConfig
"""A sweep file's path, a dictionary with the contents of one, or a configuration."""
Overrides = Mapping[str, Any] | Sequence[str]
"""Settings by dotted path, or texts such as `budget.trials=8`."""

_SOURCE = "the configuration"


def given_sweep(
    config: GivenSweep,
    *,
    search: Mapping[str, Any] | None = None,
    overrides: Overrides = (),
    allow_code: bool = False,
) -> SweepConfig:
    """The sweep of a file or dictionary, equal to that of a file with the same contents.

    Its class, if it has one (`model.class`), may run from here on.

    Args:
        allow_code: Let the code of `model.class` run without `trust_code: true` in the configuration.
        search: Swept settings by dotted path, in place of or beside those of `config`: as a sweep file has them, or as
            distributions of Ray Tune or Optuna. `constraint` gives conditions.

    Raises:
        InputFault: The settings break rules; the message lists every fault.
    """
    space = {path: in_our_terms(path, one) for path, one in (search or {}).items()}
    grids = [path for path, one in (search or {}).items() if is_grid(one)]
    if isinstance(config, str | PathLike):
        made = load_sweep_file(Path(config), [*_searched(space), *_grid_method(grids), *as_texts(overrides)])
        return _checked(made, grids, allow_code=allow_code)
    if isinstance(config, SweepConfig):
        document = read_yaml(dump_sweep(config))
        allow_code = allow_code or config.trust_code  # A resolved file never says it.
    else:
        document = YamlDocument(_plain(config))
        own = document.values.get("search")
        if isinstance(own, dict):
            grids += [path for path, one in own.items() if is_grid(one)]
            document.values["search"] = {path: in_our_terms(path, one) for path, one in own.items()}
    texts = [*_searched(space), *_grid_method(grids), *as_texts(overrides)]
    resolved = resolve_sweep(document, texts, source=_SOURCE)
    try:
        resolved = with_class_source(resolved, [Path.cwd()])
    except CodeNotFoundError as error:
        raise InputFault(f"{_SOURCE}: model.class: {error}") from error
    return _checked(resolved, grids, allow_code=allow_code)


def _checked(sweep: SweepConfig, grids: Sequence[str], *, allow_code: bool) -> SweepConfig:
    ranges = [path for path, distribution in sweep.search.items() if distribution.kind != "choice"]
    if grids and ranges:
        raise InputFault(
            f"search.{grids[0]}: tune.grid_search tries all values, and {ranges[0]} is a range without a last one; use "
            "tune.choice beside ranges, or tune.grid_search for all"
        )
    permit_class(sweep.model, is_trusted=sweep.trust_code or allow_code)
    return sweep


def _searched(space: Mapping[str, Any]) -> list[str]:
    return [f"search.{path}={json.dumps(_plain(one))}" for path, one in space.items()]


def _grid_method(grids: Sequence[str]) -> list[str]:
    """The searcher that tries all values, as tune.grid_search asks for."""
    return ["searcher.method=grid"] if grids else []


def as_texts(overrides: Overrides) -> list[str]:
    """Overrides as `--set` has them."""
    if isinstance(overrides, Mapping):
        return [f"{path}={json.dumps(_plain(value))}" for path, value in overrides.items()]
    return list(overrides)


def _plain(value: Any) -> Any:
    """A value as YAML has it: lists, dictionaries, numbers and texts. Distributions of others stay."""
    match value:
        case Distribution():
            return value.model_dump(mode="json", exclude_none=True)
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple() | range():
            return [_plain(one) for one in value]
        case PathLike():
            return str(value)
    scalar = getattr(value, "item", None)  # A number of numpy or torch.
    return scalar() if callable(scalar) and getattr(value, "ndim", 1) == 0 else value
