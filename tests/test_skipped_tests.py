"""A skipped test names its need and the command that meets it, in a line at the end of a run."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

MODULE = """\
import pytest

@pytest.mark.parametrize("number", range(3))
def test_page(number):
    pytest.skip("no Chromium (apt-get install chromium)")

@pytest.mark.skipif(True, reason="no ../shared/data (see README)")
def test_corpus():
    raise AssertionError

def test_that_runs():
    pass
"""
WHOLE_MODULE = """\
import pytest
pytest.importorskip("no_such_module", reason="no such module (pip install it)")
"""


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "workers of xdist"])
def test_needs_of_skipped_tests_stand_once_at_the_end_with_their_number(tmp_path: Path, processes: list[str]) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(MODULE)
    (tmp_path / "test_whole.py").write_text(WHOLE_MODULE)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", *processes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if " skipped: " in line]
    assert said[0] == "3 skipped: no Chromium (apt-get install chromium)"
    assert sorted(said[1:]) == [
        "1 skipped: no ../shared/data (see README)",
        "1 skipped: no such module (pip install it)",
    ]


def test_a_run_without_skips_ends_without_such_a_line(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text("def test_that_runs():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    assert "skipped" not in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def reasons(path: Path) -> Iterator[tuple[int, str | None]]:
    """Line and reason of each skip in a file; None where it gives no reason of its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in ("skip", "skipif", "importorskip"):
            given = {word.arg: word.value for word in node.keywords}.get("reason")
            if node.func.attr == "skip" and node.args:
                given = node.args[0]
            yield node.lineno, given.value if isinstance(given, ast.Constant) else None


def test_every_skip_names_a_need_and_its_remedy() -> None:
    found = {
        f"{path.relative_to(TESTS)}:{line}": reason
        for path in TESTS.rglob("*.py")
        for line, reason in reasons(path)
        if path != Path(__file__)
    }
    assert len(found) >= 10
    assert {
        at: reason for at, reason in found.items() if not re.fullmatch(r"(no|one) [^()]+ \(.+\)", reason or "")
    } == {}
