"""`make test` runs every test once, however its parts are divided; its variants run the same tests."""

import itertools
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from _pytest.mark.expression import Expression

from command import processes_marked
from patience import HANGS_AFTER_S, wait_until

ROOT = Path(__file__).parents[1]
MARKERS = ("ray", "long")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def parts_of_test() -> list[str]:
    """The targets that `make test` consists of."""
    (parts,) = re.findall(r"^test: (.*)$", MAKEFILE, re.MULTILINE)
    return str(parts).split()


def test_make_test_runs_each_test_that_is_not_slow_in_exactly_one_of_its_parts() -> None:
    recipes = dict(re.findall(r"^([\w-]+):(?:.*)\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
    texts = [recipes[part] for part in parts_of_test()]
    selections = [Expression.compile(one) for text in texts for one in re.findall(r'-m "([^"]+)"', text)]
    assert len(selections) > 1
    for is_marked in itertools.product((False, True), repeat=len(MARKERS)):
        marks = {name for name, is_on in zip(MARKERS, is_marked, strict=True) if is_on}
        run_in = [one for one in selections if one.evaluate(lambda name, **_: name in marks)]  # noqa: B023
        assert len(run_in) == 1, marks


@pytest.fixture
def make(tmp_path: Path) -> Path:
    """A script in place of the make that recipes call. It notes its arguments and environment, and ends with 3."""
    script = tmp_path / "make"
    script.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\nenv >{tmp_path}/environment\n'
        f"mkfifo {tmp_path}/ends\ncat {tmp_path}/ends\nexit 3\n"
    )
    script.chmod(0o755)
    return script


def start(target: str, make: Path) -> "subprocess.Popen[bytes]":
    """A target whose own calls of make go to the script; of a group of its own, as in a terminal."""
    return subprocess.Popen(
        ["make", "-C", ROOT, target, f"MAKE={make}"],
        env=os.environ | {"PRETUNE_TEST_MARK": str(make)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: "subprocess.Popen[bytes]", make: Path) -> int:
    """Let the script end, and return the exit status of make."""
    wait_until((make.parent / "ends").exists, "the recipe never called make")
    (make.parent / "ends").write_text("")
    return process.wait(HANGS_AFTER_S)


@pytest.mark.parametrize("target", ["test-older-cpu", "test-busy"])
def test_variants_of_make_test_run_all_its_tests_and_fail_where_they_fail(target: str, make: Path) -> None:
    assert end(start(target, make), make) == 2
    tests = [part for part in parts_of_test() if part not in ("lint", "types")]
    assert (make.parent / "arguments").read_text().split() == tests


def test_an_older_processor_has_neither_bf16_nor_avx512(make: Path) -> None:
    end(start("test-older-cpu", make), make)
    environment = (make.parent / "environment").read_text().splitlines()
    assert {"ONEDNN_MAX_CPU_ISA=AVX2", "ATEN_CPU_CAPABILITY=avx2"} <= set(environment)


@pytest.mark.parametrize("how", ["failure", "Ctrl-C", "kill"])
def test_two_busy_loops_run_beside_the_tests_and_end_with_them_however_they_end(how: str, make: Path) -> None:
    process = start("test-busy", make)
    wait_until((make.parent / "ends").exists, "the recipe never called make")
    wait_until(lambda: len(busy(make)) == 2, lambda: f"{[one.cmdline() for one in busy(make)]} are busy")
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "kill":
        loops = busy(make)
        for other in processes_marked(str(make)):
            if other not in loops:
                other.kill()
    assert (end(process, make) if how == "failure" else process.wait(HANGS_AFTER_S)) != 0
    wait_until(lambda: not processes_marked(str(make)), "something is left")


def busy(make: Path) -> list[psutil.Process]:
    """Processes of the target that have used a processor for a tenth of a second."""
    return [one for one in processes_marked(str(make)) if sum(one.cpu_times()[:2]) > 0.1]
