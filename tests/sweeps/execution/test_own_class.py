"""A class of the user in commands: checked, permitted, trained, and used; its faults are lines and not tracebacks."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from given_classes import BASE, line_of
from typer.testing import CliRunner, Result

from command import run
from sweep_examples import TINY
from sweeps.commands.cli import app

CLASS = """
class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("the ninth step is too much")

class Mine(Base):
    def __init__(self, vocabulary_size, width=16, fails=False):
        super().__init__(vocabulary_size, width)
        print("built with width", width)
        self.fails, self.steps = fails, 0

    def mix(self, x):
        self.steps += self.training
        return Failing.apply(x) if self.fails and self.steps > 9 else x
"""
FILE = """
name: own
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 300}
model: {class: "mine.py:Mine", arguments: {width: 16}, sequence_length: 16}
objective: causal_lm
training: {precision: fp32, batch_size: 16, micro_batch_size: 16}
search: {model.arguments.fails: {choice: [false, true]}}
searcher: {method: grid}
budget: {trials: 2, tokens_per_trial: 10k}
early_stopping: {method: none}
repeats: {trials: 0}
resources: {memory: 64MiB, concurrent_trials: 1}
"""


def files_in(folder: Path, *, text: str = CLASS, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(BASE + text)
    (folder / "own.yaml").write_text(FILE + more)
    return folder / "own.yaml"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_file_without_leave_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    file = files_in(tmp_path, text=f"{CLASS}\nopen({str(canary)!r}, 'w')\n")
    for command in ("check-model", "plan", "estimate", "sweep", "train"):
        done = invoke(command, file)
        assert done.exit_code == 2, command
        assert "--allow-code" in done.output, command
        assert not canary.exists(), command


def test_check_model_prints_a_line_a_check(tmp_path: Path) -> None:
    file = files_in(tmp_path, more="trust_code: true\n")
    done = invoke("check-model", file, "--results", tmp_path / "results")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == 10
    assert all(line.startswith("ok") for line in lines)


def test_check_model_ends_with_two_where_a_check_fails(tmp_path: Path) -> None:
    text = """
class Mine(Base):
    def __init__(self, vocabulary_size, width, fails):
        super().__init__(vocabulary_size, width)

    def mix(self, x):
        return x.flip(1)
"""
    file = files_in(tmp_path, text=text)
    done = invoke("check-model", file, "--allow-code", "--json", "--results", tmp_path / "results")
    assert done.exit_code == 2
    found = {one["name"]: one["fault"] for one in json.loads(done.output)}
    assert "a token changes the logits before it" in found["looks ahead"]
    assert found["builds"] is None


@dataclass(frozen=True)
class Swept:
    folder: Path
    output: str
    file: Path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep of two trials, one of which fails in its tenth step."""
    file = files_in(tmp_path_factory.mktemp("own"))
    code, output = run("sweep", file, "--results", file.parent / "results", "--allow-code")
    assert code == 0, output
    (folder,) = (file.parent / "results").glob("own-*")
    return Swept(folder, output, file)


@pytest.mark.ray
def test_a_trial_that_fails_names_the_line_and_the_next_one_completes(swept: Swept) -> None:
    trials = [json.loads(path.read_text()) for path in sorted(swept.folder.glob("trials/*/trial.json"))]
    by_outcome = {one["outcome"]: one for one in trials}
    assert set(by_outcome) == {"COMPLETED", "FAILED"}, swept.output
    code = swept.file.parent / "mine.py"
    reason = by_outcome["FAILED"]["reason"]
    assert (
        reason == f"{code}:{line_of(code, 'is too much')}: Mine.backward raised ValueError: the ninth step is too much"
    )
    assert by_outcome["COMPLETED"]["tokens"] >= 10_000
    assert "Traceback" not in swept.output


@pytest.mark.ray
def test_prints_of_a_class_stand_in_the_log_of_the_trial(swept: Swept) -> None:
    assert "built with width" not in swept.output
    assert "built with width 16" in (swept.folder / "trials/trial-0001/log.txt").read_text()


@pytest.mark.ray
def test_the_winner_is_used_with_leave_alone(swept: Swept) -> None:
    (swept.file.parent / "mine.py").unlink()  # The results keep the source.
    for place in (swept.folder, swept.folder / "best"):
        assert invoke("generate", place, "The", "--max-new-tokens", "3").exit_code == 2
        done = invoke("generate", place, "The", "--max-new-tokens", "3", "--allow-code")
        assert done.exit_code == 0, done.output
    done = invoke("evaluate", swept.folder, "--allow-code", "--json")
    summary = json.loads((swept.folder / "summary.json").read_text())
    measured = json.loads(done.output)["holdout/loss_nats_per_token"]
    # The winner was evaluated on the same rows, in other micro-batches.
    assert measured == pytest.approx(summary["best"]["holdout_loss_nats_per_token"], rel=1e-5)


@pytest.mark.ray
def test_a_model_of_a_class_in_mlflow_is_read_with_leave_alone(swept: Swept) -> None:
    results = swept.folder.parent
    assert invoke("generate", "models:/own", "The", "--results", results).exit_code == 2
    done = invoke("generate", "models:/own", "The", "--max-new-tokens", "3", "--results", results, "--allow-code")
    assert done.exit_code == 0, done.output


def test_another_sweep_file_of_ours_needs_no_leave(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = invoke("check-model", tmp_path / "tiny.yaml")
    assert done.exit_code == 2
    assert "names no class of yours" in done.output
