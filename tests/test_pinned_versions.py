"""What is installed is what constraints.txt says, and constraints.txt says it of everything."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DIRECT = [
    Requirement(text)
    for texts in (PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values())
    for text in texts
]
LINES = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
PINNED = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in LINES)}


def brought(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """Names of the installed distributions that a requirement brings, itself included."""
    for extra in ("", *requirement.extras):
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = map(Requirement, distribution(name).requires or ())
        except PackageNotFoundError:  # An extra of ours that is not installed here.
            return
        yield name
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                yield from brought(need, seen)


def test_everything_that_our_requirements_bring_has_the_version_of_constraints_txt() -> None:
    seen: set[tuple[str, str]] = set()
    names = {name for requirement in DIRECT for name in brought(requirement, seen)}
    # `2.13.0+cpu` is the build for processors of 2.13.0.
    installed = {name: Version(Version(distribution(name).version).public) for name in names}
    assert len(installed) > 100
    assert {name: (str(v), str(PINNED.get(name))) for name, v in installed.items() if PINNED.get(name) != v} == {}


def test_every_direct_dependency_is_in_constraints_txt_within_its_bounds() -> None:
    assert len(DIRECT) > 30
    missing = [one.name for one in DIRECT if canonicalize_name(one.name) not in PINNED]
    assert missing == []
    outside = [str(one) for one in DIRECT if not one.specifier.contains(PINNED[canonicalize_name(one.name)])]
    assert outside == []


def test_constraints_txt_has_one_exact_version_of_each_package() -> None:
    assert len(PINNED) == len(LINES)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in LINES)


def test_builds_use_the_pinned_setuptools() -> None:
    assert PROJECT["build-system"]["requires"] == [f"setuptools=={PINNED[canonicalize_name('setuptools')]}"]


def test_every_pip_install_is_constrained_and_the_first_one_pins_pip() -> None:
    texts = [(ROOT / name).read_text() for name in ("Makefile", ".ci/run", "sweeps/deploy/Dockerfile")]
    installs = re.findall(r"(?:pip install|python .ci/install_packages.py) .*", "\n".join(texts))
    assert len(installs) == 4
    assert [line for line in installs if "--constraint constraints.txt" not in line] == []
    assert installs[0].endswith(" pip")
    assert canonicalize_name("pip") in PINNED
