"""`pretune explain` and `pretune sweep --explain`, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command import ROOT, run
from patience import HANGS_AFTER_S
from sweeps.commands.cli import app


def told(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and output of a command in this process: a process of its own would import for a second."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.output


@pytest.mark.long
def test_a_setting_is_explained_with_values_default_and_docstring() -> None:
    code, output = run("explain", "training.beta2")
    assert code == 0
    assert output.startswith("training.beta2: number from 0 to below 1; default 0.98; can be swept\n    Adam's decay")
    assert "per optimizer step" in output


@pytest.mark.long
def test_sweep_explains_a_setting_as_well_without_a_file() -> None:
    assert run("sweep", "--explain", "training.beta2") == told("explain", "training.beta2")


@pytest.mark.parametrize("command", [("explain",), ("sweep", "--explain")])
def test_a_typo_is_a_fault_with_the_setting_that_was_meant(command: tuple[str, ...]) -> None:
    code, output = told(*command, "training.beat2")
    assert (code, output) == (
        2,
        "pretune: training.beat2 is not a setting of a sweep file or of a fine-tuning; did you mean training.beta2?\n",
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("beta2", "did you mean training.beta2?"),
        ("learning_rate", "did you mean training.learning_rate or stages.learning_rate?"),
        ("trainig.beta2", "did you mean training.beta2?"),
        ("zzzz", "pretune explain lists all"),
        ("5", "pretune explain lists all"),
    ],
)
def test_a_key_without_its_section_is_a_fault_that_names_the_sections(key: str, meant: str) -> None:
    code, output = told("explain", key)
    assert code == 2
    assert output.endswith(f"; {meant}\n")


def test_a_section_shows_all_of_its_settings() -> None:
    _, output = told("explain", "searcher")
    headings = [line.partition(":")[0] for line in output.splitlines() if line and not line.startswith(" ")]
    settings = ("method", "start", "seed", "grid_points", "extend")
    assert headings == ["searcher", *(f"searcher.{name}" for name in settings)]


def test_search_shows_each_distribution_with_an_example_on_one_line() -> None:
    _, output = told("explain", "search")
    lines = [line.strip() for line in output.splitlines()]
    assert "Example: training.batch_size: {choice: [16, 32, 64]}" in lines
    assert "Example: training.learning_rate: {log_uniform: [1e-4, 1e-2]}" in lines
    for kind in ("uniform", "int_uniform", "log_int_uniform"):
        assert sum(f"{{{kind}: [" in line and line.startswith("Example: ") for line in lines) == 1


def test_without_a_key_all_sections_are_listed() -> None:
    code, output = told("explain")
    assert code == 0
    sweep_part, _, finetuning_part = output.partition("Sections and settings of a file of a fine-tuning")
    for section in ("corpus", "model", "training", "search", "early_stopping", "budget", "sizes"):
        assert f"\n  {section} " in sweep_part
    for section in ("start", "corpus", "training", "grid_points"):
        assert f"\n  {section} " in finetuning_part


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("stages.0.tokens", "stages.tokens"),
        ("search.training.beta2", "training.beta2"),
        ("search.training.beta2.uniform", "search.SETTING.uniform"),
        ("start_with.1.training.beta2", "training.beta2"),
        ("sizes.full.model.layers", "model.layers"),
    ],
)
def test_a_place_as_faults_name_it_is_explained(place: str, path: str) -> None:
    code, output = told("explain", place)
    assert code == 0
    assert output.startswith(f"{path}: ")


def test_a_setting_of_both_kinds_of_files_is_explained_for_each() -> None:
    _, output = told("explain", "training.learning_rate")
    of_a_sweep, _, of_a_finetuning = output.partition("In a file of a fine-tuning (pretune finetune):")
    assert "number above 0; default 0.0005; can be swept" in of_a_sweep
    assert "number above 0 or auto; default auto; can be swept" in of_a_finetuning


def test_a_setting_that_cannot_be_swept_says_why() -> None:
    _, output = told("explain", "model.sequence_length")
    assert "cannot be swept: rows are packed once" in output


def test_an_explanation_imports_neither_ray_nor_torch() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from sweeps.commands.cli import app; "
        "done = CliRunner().invoke(app, ['explain', 'training']); "
        "print(done.exit_code, [name for name in ('ray', 'torch', 'mlflow', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=HANGS_AFTER_S
    )
    assert done.stdout == "0 []\n"


def test_a_wrong_value_in_a_file_names_the_explanation(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: x\ncorpus: {builtin: python-docs}\nobjective: masked_lm\ntraining: {beta2: 1.5}\n"
        "budget: {tokens_per_trial: 1k}\n"
    )
    code, output = told("plan", file)
    assert code == 2
    assert "line 4: training.beta2 = 1.5: should be less than 1; see `pretune explain training.beta2`." in output
