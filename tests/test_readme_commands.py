"""Every command of the READMEs runs as it stands there, one after another in one folder."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_readme import ROOT, SWEEP_FILE, commands_to_run

from patience import COMMAND_HANGS_AFTER_S
from sweeps.records.trial_records import TrialStore

pytestmark = pytest.mark.ray

IN_ORDER = ("pretune prepare my-sweep.yaml", "pretune sweep")
"""Beginnings of commands after which others find their results."""
NEEDS_NO_RESULTS = ("pretune new", "pretune explain", "pretune plan", "pretune estimate", "pretune prepare")
"""Beginnings of commands that run before the sweep; all others run after it."""


class Folder:
    """Where a user of the READMEs stands: a corpus and a sweep file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        assert SWEEP_FILE is not None
        (path / "my-sweep.yaml").write_text(SWEEP_FILE[1])
        numbers = range(4000)
        rows = (f'{{"text": "Row {n} holds {n * 7 % 1000} apples and {n % 13} pears."}}' for n in numbers)
        (path / "my-corpus.jsonl").write_text("\n".join(rows))
        labelled = (f"Row {n} holds {n % 7} {'figs' if n % 2 else 'nuts'},t{n % 2}" for n in range(60))
        (path / "my-labelled.csv").write_text("\n".join(["text,topic", *labelled]))

    def run(self, command: str) -> str:
        """What a command prints; it has to succeed."""
        done = subprocess.run(
            shlex.split(command),
            cwd=self.path,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=COMMAND_HANGS_AFTER_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def results(self, name: str) -> Path:
        """Folder of the one sweep of this name."""
        summaries = list((self.path / "results").glob(f"{name}-*/summary.json"))
        (found,) = [path.parent for path in summaries if json.loads(path.read_text())["name"] == name]
        return found

    def best(self, name: str) -> dict[str, Any]:
        """Row of its best trial."""
        best: dict[str, Any] = json.loads((self.results(name) / "summary.json").read_text())["best"]
        return best


@pytest.fixture(scope="module")
def printed(folder: Folder) -> dict[str, str]:
    """Output of each command of the READMEs."""
    commands = commands_to_run()
    alone = [command for command in commands if command.startswith(IN_ORDER) and "--check" not in command]
    before = [one for one in commands if one.startswith(NEEDS_NO_RESULTS) and one not in alone]
    after = [one for one in commands if one not in alone and one not in before]
    assert alone
    assert before
    assert after
    with ThreadPoolExecutor(os.cpu_count()) as side_by_side:
        done = dict(zip(before, side_by_side.map(folder.run, before), strict=True))
        done |= {command: folder.run(command) for command in alone}
        return done | dict(zip(after, side_by_side.map(folder.run, after), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("user"))


def test_every_command_of_the_readmes_runs(printed: dict[str, str], folder: Folder) -> None:
    assert len(printed) >= 12
    assert (folder.path / "first-sweep.yaml").is_file()
    assert (folder.results("my-sweep") / "best" / "model.safetensors").is_file()
    assert (folder.path / "my-model" / "model.safetensors").is_file()


def test_a_winner_goes_on_from_its_own_trunk_so_that_nothing_is_trained_twice(
    printed: dict[str, str], folder: Folder
) -> None:
    (output,) = [output for command, output in printed.items() if command.startswith("pretune train")]
    # 85 % of 20,000 tokens are before the cooldown, and checkpoints stand at the ends of steps.
    assert "continues from the winner's trunk: 16," in output
    store = TrialStore(folder.results("my-sweep-train") / "trials")
    first = next(iter(store.reports(store.load_all()[0])))
    assert first["tokens"] > 16_000
    winner, trained = folder.best("my-sweep"), folder.best("my-sweep-train")
    assert 40_000 <= trained["tokens"] < 40_000 + 64 * 64
    assert trained["holdout_loss_nats_per_token"] < winner["holdout_loss_nats_per_token"]


@pytest.mark.slow
def test_the_picture_of_a_readme_is_drawn_by_the_command_beside_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    shutil.copytree(ROOT / "sweeps" / "configs", tmp_path / "sweeps" / "configs")
    folder.run("pretune sweep sweeps/configs/quickstart.yaml")
    folder.run(f"pretune report {folder.results('quickstart')} --pictures sweeps/pictures")
    assert (tmp_path / "sweeps" / "pictures" / "frontier.svg").is_file()
