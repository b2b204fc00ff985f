"""Faults that every trial would meet end each command in one sentence, before a corpus is prepared or Ray starts."""

import json
from pathlib import Path

import pytest
import ray
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.tokenizer import train_tokenizer
from sweep_examples import TINY, tiny_sweep
from sweeps.commands.cli import app
from sweeps.planning.first_checks import check_device

pytestmark = pytest.mark.usefixtures("no_ray_left")

COMMANDS = (["plan"], ["estimate"], ["prepare"], ["prepare", "--check"], ["train", "--from", "file"])
ON_A_DEVICE = (["plan"], ["estimate"], ["sweep"], ["train", "--from", "file"])
"""Commands that train, or predict the memory of a training. Another machine may train than the one that prepares."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("".join(f"Trial {n} ends with a loss of {n * n}.\n" for n in range(200)))
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("builtin: python-docs", f"path: {tmp_path / 'texts.txt'}"))
    return path


def tokenizer_without(token: str, folder: Path) -> Path:
    """A tokenizer.json in which this special token has a name that nobody knows."""
    text = train_tokenizer(TokenizerConfig(vocabulary=300, min_frequency=1), ["some text"] * 9).to_str()
    path = folder / "tokenizer.json"
    Tokenizer.from_str(text.replace(token, "<of-no-use>")).save(str(path))
    return path


def refusal(command: list[str], file: Path, *overrides: str) -> str:
    """The words with which a command refuses a file. Nothing was started and nothing prepared."""
    results = file.parent / "results"
    given = [word for override in overrides for word in ("--set", override)]
    result: Result = CliRunner().invoke(app, [*command, str(file), "--results", str(results), *given])
    assert result.exit_code == 2, result.output
    assert not (results / "prepared").exists()
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS[:4], ids=" ".join)
def test_initial_weights_that_are_not_there_are_refused(command: list[str], file: Path) -> None:
    words = refusal(command, file, f"training.initial_weights={file.parent / 'nowhere'}")
    assert "nowhere: there is no such folder; give the folder of a model" in words


@pytest.mark.skipif("__import__('torch').cuda.device_count() > 0", reason="no CPU alone (run without a GPU)")
@pytest.mark.parametrize("command", ON_A_DEVICE, ids=" ".join)
def test_fp16_without_a_gpu_is_refused_before_anything_starts(command: list[str], file: Path) -> None:
    words = refusal(command, file, "training.precision=fp16")
    assert "training.precision=fp16: fp16 is for GPUs without bf16, and there is no GPU here; use auto" in words
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.precision=fp16", "training.precision=fp16: fp16 is for GPUs"),
        ("search.training.precision={choice: [bf16, fp16]}", "search.training.precision=fp16: .* remove fp16 from"),
    ],
)
def test_fp16_is_refused_on_cpus_and_allowed_on_gpus(override: str, expected: str) -> None:
    with pytest.raises(InputFault, match=expected):
        check_device(tiny_sweep(override), num_gpus=0)
    with pytest.raises(InputFault, match=r"resources\.device is cpu"):
        check_device(tiny_sweep(override, "resources.device=cpu"), num_gpus=4)
    check_device(tiny_sweep(override), num_gpus=1)


@pytest.mark.long
def test_an_estimate_for_a_gpu_may_be_in_fp16(file: Path) -> None:
    arguments = ["estimate", str(file), "--device", "T4", "--set", "training.precision=fp16"]
    result = CliRunner().invoke(app, [*arguments, "--results", str(file.parent / "results")])
    assert result.exit_code == 0, result.output
    assert "predicted for a GPU in fp16" in result.output


def test_the_plan_lists_combinations_that_are_never_launched_with_their_rule(file: Path) -> None:
    shapes = ("search={model.width: {choice: [30, 32]}, model.heads: {choice: [3, 4]}}", "training.micro_batch_size=4")
    arguments = [word for shape in shapes for word in ("--set", shape)]
    results = str(file.parent / "results")
    shown = CliRunner().invoke(app, ["plan", str(file), "--results", results, "--no-measure", *arguments])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "combinations 2 of 4 combinations of model.width, model.heads are valid; the others are never" in words
    assert "width 32, heads 3: width=32 is not a multiple of heads=3; try width=33" in words
    as_json = json.loads(
        CliRunner().invoke(app, ["plan", str(file), "--results", results, "--no-measure", "--json", *arguments]).stdout
    )
    (found,) = as_json["partly_invalid"]
    assert (found["num_valid"], found["num_judged"], found["is_sampled"]) == (2, 4, False)
    assert [settings["model.heads"] for settings, _ in found["faults"]] == [4, 3]


# Last, because Ray stays for the rest of the module.
@pytest.mark.parametrize("command", [*COMMANDS, pytest.param(["sweep"], marks=pytest.mark.ray)], ids=" ".join)
@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("<mask>", "objective masked_lm needs a mask token, and the tokenizer has none of <mask>"),
        ("</s>", "the tokenizer has no token that ends a text; it needs one of </s>"),
    ],
)
def test_a_tokenizer_without_a_token_that_the_objective_needs_is_refused_by_every_command(
    command: list[str], token: str, expected: str, file: Path
) -> None:
    path = tokenizer_without(token, file.parent)
    words = refusal(command, file, f"tokenizer={{kind: file, path: {path}}}")
    assert f"tokenizer.path={path}: {expected}" in words
