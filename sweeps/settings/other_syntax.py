"""Search spaces in the syntax of W&B, Optuna, Ray Tune and Hydra, with the line that pretune reads in their place.

They are refused and not accepted: some of them mean other values under the same name.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from sweeps.search_space.distribution import KINDS, Distribution
from sweeps.settings.setting_paths import outermost
from sweeps.settings.settings_faults import Fault
from sweeps.settings.yaml_lines import YamlDocument, parse_value

_LOW = ("min", "low", "lower", "lower_bound", "minimum", "start", "from")
_HIGH = ("max", "high", "upper", "upper_bound", "maximum", "stop", "end", "to")
_LIST = ("values", "choices", "categories", "options", "sequence", "value")
_STEP = ("q", "step", "quantization")
_KIND = ("distribution", "type", "kind", "method", "sampler")
KEYWORDS = frozenset({*_LOW, *_HIGH, *_LIST, *_STEP, *_KIND, "log", "scale", "mu", "sigma", "grid_search"})
"""Keys of other tools below a swept setting."""

_LISTS = ("choice", "choices", "values", "value", "categorical", "gridsearch", "grid", "constant", "options", "shuffle")
_WHOLE = ("int", "integer", "randint", "lograndint", "range", "intuniform", "logintuniform", "uniformint")
_RANGES = ("", "uniform", "loguniform", "loguniformvalues", "float", "double", "interval", "reciprocal", *_WHOLE)
_LOGARITHMIC = ("loguniform", "loguniformvalues", "reciprocal", "lograndint", "logintuniform")
_END_EXCLUDED = ("randint", "lograndint", "range")
"""Functions of Python, Tune and Hydra whose upper end is not one of the values."""
_MOST_STEPS = 20
_LONGEST_TEXT = 300

_Scalar = bool | int | float | str


@dataclass(frozen=True)
class _Call:
    """A distribution as another tool writes it: `tune.loguniform(1e-4, 1e-2)`, `{min: 1, max: 8}`."""

    name: str
    arguments: Sequence[Any] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def first(self, keys: Sequence[str]) -> Any:
        """The value of the first key that is given; None without one."""
        return next((self.named[key] for key in keys if key in self.named), None)


def in_our_syntax(
    search: Mapping[str, Any], document: YamlDocument, *, known: Collection[str], whole: Collection[str]
) -> tuple[dict[str, Any], list[Fault]]:
    """The section `search` with all that other tools write in our syntax, and a fault for each such setting.

    Args:
        known: Dotted paths of the settings that can be swept.
        whole: Those of them that are whole numbers.
    """
    ours: dict[str, Any] = {}
    faults = []
    for written, path, raw in _settings(search, "", known):
        location, line = f"search.{written}", document.line_of(f"search.{written}")
        full = _full(path, known)
        meant = None if _is_ours(raw) else _meant(raw, is_whole=full in whole if full in known else None)
        rule = "is not in the syntax of a swept setting" if written in search else "is in a section of `search`"
        if path in ours:
            faults.append(Fault(location, line, None, "is given twice", "keep one of them"))
            continue
        if not meant and not _is_ours(raw) and (not isinstance(raw, dict) or KEYWORDS & {*raw}):
            remedy = f"write {full}: {{choice: [..]}} with values, or {full}: {{uniform: [low, high]}} with numbers"
            faults.append(Fault(location, line, raw, rule, remedy))
            continue
        if meant or written not in search:
            lines = ", or ".join(f"{full}: {_as_yaml(one)}" for one in meant or [raw])
            faults.append(Fault(location, line, raw, rule, f"write {lines}"))
        ours[path] = meant[0] if meant else raw
    return ours, faults


def _settings(section: Mapping[str, Any], prefix: str, known: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """Path in the file, dotted path and value of all settings, those in nested sections included."""
    for key, value in section.items():
        path = f"{prefix}{key}"
        is_section = path not in known and any(one.startswith(f"{path}.") for one in known)
        if is_section and isinstance(value, dict):
            # W&B has its nested settings below a key of their own.
            nested = value.get("parameters")
            inner = nested if len(value) == 1 and isinstance(nested, dict) else value
            for written, below, raw in _settings(inner, f"{path}.", known):
                yield written.replace(path, f"{path}.parameters", 1) if inner is nested else written, below, raw
        else:
            yield path, path, value


def _full(path: str, known: Collection[str]) -> str:
    """The dotted path of a setting that is written without its section, if only one has this name."""
    found = outermost(one for one in known if one.endswith(f".{path}"))
    return found[0] if path not in known and len(found) == 1 else path


def _is_ours(raw: Any) -> bool:
    """Whether a value is in our syntax, its numbers valid or not."""
    try:
        Distribution.model_validate(raw)
    except ValidationError:
        return (
            isinstance(raw, dict)
            and len([key for key in raw if key != "when"]) == 1
            and all(key == "when" or (key in KINDS and isinstance(value, list)) for key, value in raw.items())
        )
    return True


def _meant(raw: Any, *, is_whole: bool | None) -> list[dict[str, list[_Scalar]]]:
    """Distributions of ours that a value of another syntax may mean; an empty list if it is no syntax that we know.

    Args:
        is_whole: Whether the setting is a whole number; None: unknown.
    """
    if isinstance(raw, list):
        is_range = len(raw) == 2 and all(map(_is_number, raw)) and raw[0] < raw[1]
        return [*_choice(raw), *(_range(_Call("", raw), is_whole) if is_range else [])]
    if isinstance(raw, dict):
        call = _call_of_mapping(raw)
    elif isinstance(raw, str):
        call = _call_of_text(raw)
    else:
        call = None if raw is None else _Call("choice", [raw])
    return [] if call is None else _distribution(call, is_whole)


def _call_of_mapping(raw: dict[str, Any]) -> _Call | None:
    keys = [*raw]
    if len(keys) == 1 and keys[0] not in (*_LIST, "grid_search"):
        value = raw[keys[0]]
        if isinstance(value, dict):
            return _Call(keys[0], named=value)
        return _Call(keys[0], value if isinstance(value, list) else [value])
    if "grid_search" in raw:
        return _Call("choice", [raw["grid_search"]])
    kind = next((raw[key] for key in _KIND if isinstance(raw.get(key), str)), "")
    return _Call(kind, named=raw) if KEYWORDS & {*raw} else None


def _call_of_text(text: str) -> _Call | None:
    """`tune.uniform(0, 1)`, `choice(a, b)` and `8,16,32`, read without running anything; None for another text."""
    if len(text) > _LONGEST_TEXT:
        return None
    if "(" not in text:
        return _Call("choice", [_plain(part) for part in text.split(",")]) if text.strip(" ,") else None
    try:
        with warnings.catch_warnings(action="ignore"):
            node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return _call_of_node(node, text.strip())


def _call_of_node(node: ast.expr, text: str) -> _Call | None:
    if not isinstance(node, ast.Call):
        return None
    named = {one.arg: _argument(one.value, text) for one in node.keywords if one.arg}
    return _Call(ast.unparse(node.func), [_argument(one, text) for one in node.args], named)


def _argument(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _call_of_node(node, text)
    if isinstance(node, ast.List | ast.Tuple):
        return [_argument(one, text) for one in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _plain(ast.get_source_segment(text, node) or "")  # Hydra writes words without quotes.


def _plain(text: str) -> Any:
    try:
        return parse_value(text)
    except yaml.YAMLError:
        return text.strip()


def _distribution(call: _Call, is_whole: bool | None) -> list[dict[str, list[_Scalar]]]:
    inner = next((one for one in call.arguments if isinstance(one, _Call)), None)
    if inner is not None:  # Hydra: tag(log, interval(..)), int(interval(..)).
        is_log = "log" in call.arguments
        return _distribution(
            _Call(inner.name, inner.arguments, {**inner.named, **({"log": True} if is_log else {})}), is_whole
        )
    name = _bare(call.name)
    named_list = call.first(_LIST)
    if name in _LISTS or (named_list is not None and name not in _WHOLE):
        values = [*call.arguments] if named_list is None else [named_list]
        lists = [one for one in values if isinstance(one, list)]
        return _choice(lists[0] if lists else values)
    return _range(_Call(name, call.arguments, call.named), is_whole) if name.removeprefix("q") in _RANGES else []


def _bare(name: str) -> str:
    """`tune.qloguniform`, `suggest_float` and `FloatDistribution` as `qloguniform`, `float` and `float`."""
    bare = name.rpartition(".")[2].lower().removeprefix("suggest_").removesuffix("distribution").replace("_", "")
    return {"discreteuniform": "quniform"}.get(bare, bare)


def _choice(values: Sequence[Any]) -> list[dict[str, list[_Scalar]]]:
    is_plain = bool(values) and all(isinstance(one, _Scalar) and _is_finite(one) for one in values)
    return [{"choice": list(values)}] if is_plain else []


def _range(call: _Call, is_whole: bool | None) -> list[dict[str, list[_Scalar]]]:
    numbers = [one for one in call.arguments if _is_number(one)]
    if call.name == "range" and len(numbers) == 1:
        numbers = [0, *numbers]
    low, high, step, *_ = [*numbers, None, None, None]
    low, high = (call.first(_LOW) if low is None else low), (call.first(_HIGH) if high is None else high)
    step = call.first(_STEP) if step is None or not _has_step(call.name) else step
    if not (_is_number(low) and _is_number(high)):
        return []
    is_log = (
        call.name.removeprefix("q") in _LOGARITHMIC or call.named.get("log") is True or call.named.get("scale") == "log"
    )
    if call.name == "loguniform" and low < 0:
        # W&B and hyperopt give the logarithms of the ends.
        low, high = (float(f"{math.exp(min(end, 700)):.4g}") for end in (low, high))
    if is_whole is None:
        is_whole = call.name.removeprefix("q") in _WHOLE or (
            call.name == "" and all(isinstance(x, int) for x in (low, high))
        )
    is_whole = is_whole and low == int(low) and high == int(high)
    if is_whole:
        low, high = int(low), int(high) - (call.name in _END_EXCLUDED)
    if _is_number(step) and step > 0 and not is_log and (high - low) / step < _MOST_STEPS and step != 1:
        end = low + (high - low) * (1 + 1e-9)
        count = int((end - low) / step) + 1
        values = [low + index * step for index in range(count)]
        return _choice([value if isinstance(value, int) else float(f"{value:.10g}") for value in values])
    kind = ("log_" if is_log else "") + ("int_" if is_whole else "") + "uniform"
    return [{kind: [low, high]}]


def _has_step(name: str) -> bool:
    return name.startswith("q") or name == "range"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)


def _is_finite(value: _Scalar) -> bool:
    return isinstance(value, str) or abs(value) < 1e300


def _as_yaml(value: Any) -> str:
    """A value on one line, as the file has it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_as_yaml(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) and _plain(value) == value
    return str(value) if is_word else json.dumps(value, ensure_ascii=False, default=str)
