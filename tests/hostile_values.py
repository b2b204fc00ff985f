"""Random values and random changes, for tests that only our own errors leave a parser."""

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 1e300, 2**62, 10**30, math.inf, 5e-324])
WORDS = st.sampled_from(
    ["auto", "", "1e400", "9" * 400 + "M", "2%", "-1%", "nan%", "1.5GiB", "90min", "null", "\0", "7d"]
)
SCALARS = NUMBERS | WORDS | st.booleans() | st.none() | st.text(max_size=20)


def nested(keys: st.SearchStrategy[Any]) -> Any:
    """Scalars, and small lists and mappings of them with these keys."""
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


VALUES = nested(st.text(max_size=9))
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), VALUES), min_size=1, max_size=3)
"""Places and the values that come there, for `changed`."""

TEXTS = st.sampled_from(["", "{}", "[]", "null", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, "{", '"', "\ufeff{}"])
BYTES = st.binary(max_size=60) | TEXTS.map(str.encode) | VALUES.map(lambda value: json.dumps(value).encode())
"""Contents of a file that may or may not be JSON."""


def changed(values: Any, changes: list[tuple[int, Any]]) -> Any:
    """A copy of nested values with other values at some places."""
    values = copy.deepcopy(values)
    for place, value in changes:
        known = _places(values)[1:]
        if not known:
            return value
        *parents, last = known[place % len(known)]
        section = values
        for name in parents:
            section = section[name]
        section[last] = value
    return values


def _places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]
