"""Constraints of a search space: conditions on settings such as `width % heads == 0`, read without running them.

The syntax is that of Python's comparisons and arithmetic. A constraint is parsed to a tree, and the tree is evaluated
here, node by node: it can call nothing but min, max and abs, and its arithmetic takes numbers alone.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST = 300
"""Characters of a constraint: a longer text could be nested too deeply to be parsed."""
_LARGEST = 1e18
"""Arithmetic beyond this is no setting's: whole numbers of Python grow without limit."""

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, listed: value in listed,
    ast.NotIn: lambda value, listed: value not in listed,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}
_WORDS: Mapping[str, Any] = {"null": None, "true": True, "false": False}
"""Values as YAML spells them, beside None, True and False."""


class ConstraintFault(ValueError):  # noqa: N818 - a fault of the text
    """A text is no constraint; the message has the rule and the remedy."""


@dataclass(frozen=True)
class Constraint:
    """One condition that the settings of every trial meet."""

    text: str
    condition: ast.expr
    paths: Mapping[str, str]
    """Each name in the text to the dotted path of its setting."""

    def fault(self, value_at: Callable[[str], Any]) -> str | None:
        """Why settings break the constraint, with their values; None if they meet it.

        Args:
            value_at: The value at a dotted path.
        """
        values = {name: value_at(path) for name, path in self.paths.items()}
        given = ", ".join(f"{name}={'null' if value is None else value}" for name, value in values.items())
        try:
            holds = _value(self.condition, values)
        except (TypeError, ValueError, ArithmeticError) as error:
            return f"{given} cannot be compared by the constraint {self.text} ({error})"
        return None if holds else f"{given} breaks the constraint {self.text}"


def parse_constraint(text: str, *, known: Collection[str], swept: Collection[str]) -> Constraint:
    """The constraint of a text.

    A name is a dotted path (`model.width`) or its end (`width`). An end that several settings share means the swept
    one, or else the one with the shortest path.

    Args:
        known: Dotted paths of the settings that may be named.
        swept: Those of them that the sweep searches.

    Raises:
        ConstraintFault: The text is no condition on known settings.
    """
    if len(text) > _LONGEST:
        raise ConstraintFault(f"has {len(text)} characters; a constraint has at most {_LONGEST}, so split it")
    try:
        with warnings.catch_warnings(action="ignore"):
            condition = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConstraintFault("is no condition; write width % heads == 0, for instance") from None
    names: dict[str, str] = {}
    _check(condition, names, lambda name: _path_of(name, known, swept))
    if not _is_condition(condition):
        raise ConstraintFault("gives a number and no answer of yes or no; compare it, as width % heads == 0 does")
    return Constraint(text.strip(), condition, names)


def _check(node: ast.expr, names: dict[str, str], path_of: Callable[[str], str]) -> None:
    """Refuse all but the nodes that `_value` evaluates; collect the settings that are named."""
    match node:
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            _check_all(parts, names, path_of)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=part):
            _check(part, names, path_of)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _check_all((left, right), names, path_of)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            _check_all((left, *others), names, path_of)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _FUNCTIONS and parts:
            _check_all(parts, names, path_of)
        case ast.Constant(value=bool() | int() | float() | str() | None):
            pass
        case ast.Name() | ast.Attribute():
            name = _dotted(node)
            if name not in _WORDS:
                names[name] = path_of(name)
        case _:
            raise ConstraintFault(
                f"has `{ast.unparse(node)[:60]}`; a constraint has settings, numbers and words, + - * / // %, "
                "comparisons, in, and, or, not, min, max and abs"
            )


def _check_all(nodes: Sequence[ast.expr], names: dict[str, str], path_of: Callable[[str], str]) -> None:
    for node in nodes:
        _check(node, names, path_of)


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            return f"{_dotted(inner)}.{name}"
    raise ConstraintFault(f"has `{ast.unparse(node)[:60]}`, which names no setting")


def _path_of(name: str, known: Collection[str], swept: Collection[str]) -> str:
    if name in known:
        return name
    for paths in (swept, known):
        found = [path for path in paths if path.endswith(f".{name}")]
        fewest = min((path.count(".") for path in found), default=0)
        found = [path for path in found if path.count(".") == fewest]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConstraintFault(f"has `{name}`, which may mean {' or '.join(sorted(found))}; write one of them")
    raise ConstraintFault(f"has `{name}`, which is no setting of a trial; see `pretune explain`")


def _is_condition(node: ast.expr) -> bool:
    match node:
        case ast.BoolOp(values=parts):
            return all(map(_is_condition, parts))
        case ast.Compare() | ast.UnaryOp(op=ast.Not()) | ast.Constant(value=bool()) | ast.Name() | ast.Attribute():
            return True  # A name may be a setting that is true or false.
        case _:
            return False


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.BoolOp(op=op, values=parts):
            answers = (_truth(_value(part, values)) for part in parts)
            return all(answers) if isinstance(op, ast.And) else any(answers)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _truth(_value(part, values))
        case ast.UnaryOp(op=op, operand=part):
            number = _number(_value(part, values))
            return -number if isinstance(op, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            return _number(_ARITHMETIC[type(op)](_number(_value(left, values)), _number(_value(right, values))))
        case ast.Compare(left=left, ops=ops, comparators=others):
            before = _value(left, values)
            for comparison, other in zip(ops, others, strict=True):
                after = _value(other, values)
                if not _COMPARISONS[type(comparison)](before, after):
                    return False
                before = after
            return True
        case ast.Call(func=ast.Name(id=name), args=parts):
            numbers = [_number(_value(part, values)) for part in parts]
            return abs(*numbers) if name == "abs" else _FUNCTIONS[name](numbers)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, values) for part in parts]
        case ast.Constant(value=value):
            return value
    name = _dotted(node)
    return _WORDS[name] if name in _WORDS else values[name]


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError(f"{value!r} is neither true nor false")


def _number(value: Any) -> Any:
    """A number as it is. Text is refused: Python's % on text writes memory full with twelve characters."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise OverflowError("a number is too large")
    return value
