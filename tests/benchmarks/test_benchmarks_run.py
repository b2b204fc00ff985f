"""Each benchmark runs through with --quick and ends in its JSON line. No time is asserted."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from patience import COMMAND_HANGS_AFTER_S

SCRIPTS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))
assert len(SCRIPTS) > 5, "there are no benchmarks to run"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_prints_ratios_as_its_last_line(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--quick"],
        capture_output=True,
        text=True,
        timeout=COMMAND_HANGS_AFTER_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert last["benchmark"] == script.stem
    # Python's JSON accepts NaN and infinity, which are floats as well.
    assert all(isinstance(ratio, float | int) and math.isfinite(ratio) for ratio in last["ratios"].values())
    assert last["ratios"]
