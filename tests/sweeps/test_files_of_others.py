"""Data and results of others are safe to open: no kind of file that pretune reads runs code of its author."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from command import ROOT
from patience import HANGS_AFTER_S

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Found:
    """What the disarmed process has found."""

    ways: dict[str, str]
    files: dict[str, str]
    fired: list[str]

    def traps(self, *words: str) -> dict[str, str]:
        """The outcomes of traps with these words in their names."""
        return {name: came for name, came in self.files.items() if any(word in name for word in words)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Files of every kind, honest ones and traps, read in a process in which running code is an error."""
    tests = ROOT / "tests"
    folders = (ROOT, tests, tests / "core", tests / "data_pipeline", tests / "sweeps")
    done = subprocess.run(
        [sys.executable, tests / "sweeps/disarmed_process.py", tmp_path_factory.mktemp("kinds")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )
    assert done.returncode == 0, done.stderr
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def test_a_process_is_disarmed_of_every_way_to_run_code(found: Found) -> None:
    assert len(found.ways) >= 12
    assert {name: came for name, came in found.ways.items() if not came.startswith("RAN CODE")} == {}


def test_honest_files_of_every_kind_are_read_where_nothing_can_run_code(found: Found) -> None:
    honest = {name: came for name, came in found.files.items() if ":" not in name}
    assert len(honest) >= 20
    assert {name: came for name, came in honest.items() if came != "read"} == {}


def test_no_file_of_another_runs_code(found: Found) -> None:
    assert len(found.files) >= 80
    assert {name: came for name, came in found.files.items() if came.startswith("RAN CODE")} == {}
    assert found.fired == []


def test_extension_types_pickled_weights_and_tags_of_yaml_are_faults_with_a_message(found: Found) -> None:
    traps = found.traps("extension type", "block with", "file: calls", "file: makes", "file: names", "model.bin")
    assert len(traps) >= 24
    assert {name: came for name, came in traps.items() if not came.startswith("fault: ")} == {}


def test_a_chat_template_that_leaves_its_sandbox_is_refused(found: Found) -> None:
    (came,) = found.traps("template that escapes").values()
    assert "TemplateError" in came
