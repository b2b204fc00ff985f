"""Private names of other packages that we use: the list of private_names.toml, and the contract with each."""

import functools
import importlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class PrivateNames:
    """Of one package."""

    folder: str
    """The only one that may use them."""
    contracts: str
    """The test file that says of each what we rely on."""
    internal: tuple[str, ...]
    """Modules without an underscore that no promise covers all the same."""
    names: Mapping[str, tuple[str, ...]]
    """Full name to the files that use it."""


@functools.cache
def private_names() -> dict[str, PrivateNames]:
    """Package to its private names."""
    data = tomllib.loads((ROOT / "tests/private_names.toml").read_text(encoding="utf-8"))
    return {
        package: PrivateNames(
            entry["folder"],
            entry["contracts"],
            tuple(entry["internal"]),
            {name: tuple(files) for name, files in entry["names"].items()},
        )
        for package, entry in data.items()
    }


def names_of(package: str) -> list[str]:
    """All private names of a package; some, or a test of each would test nothing."""
    names = sorted(private_names()[package].names)
    assert names, f"tests/private_names.toml lists no name of {package}"
    return names


def resolved(name: str) -> Any:
    """The object behind a full name: the longest module, then attributes."""
    parts = name.split(".")
    for stop in range(len(parts), 0, -1):
        module = ".".join(parts[:stop])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise
            continue
        for part in parts[stop:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def check_contract(name: str, contracts: Mapping[str, Callable[[], object]]) -> None:
    """See that a private name is where and what we need, or say which one is not and where we use it."""
    files = private_names()[name.split(".")[0]].names[name]
    assert name in contracts, f"{name} has no contract; used in {', '.join(files)}"
    try:
        holds = contracts[name]()
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, AssertionError) as error:
        pytest.fail(f"{name} moved or changed: {error!r}; used in {', '.join(files)}")
    assert holds is not False, f"{name} is not what it was; used in {', '.join(files)}"
