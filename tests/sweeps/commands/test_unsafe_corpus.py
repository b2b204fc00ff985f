"""A Parquet file that would run code of its author, given to each command that reads a corpus or a table."""

from pathlib import Path

import pytest
import ray.data  # noqa: F401  # Registers the extension type that unpickles, as `sweep` and `train` do.
from canaries import OF_RAY, parquet_with, places
from typer.testing import CliRunner

from small_models import exported
from sweep_examples import TINY
from sweeps.commands.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
COMMANDS = {
    "prepare": ["prepare", "SWEEP", "--check"],
    "embed": ["embed", "ENCODER", "CORPUS", "--out", "OUTPUT"],
    "finetune": ["finetune", "ENCODER", "CORPUS", "--classify", "label", "--out", "OUTPUT"],
    "fill-mask": ["fill-mask", "ENCODER", "--input", "CORPUS"],
    "generate": ["generate", "DECODER", "--input", "CORPUS"],
    "evaluate": ["evaluate", "ENCODER", "--corpus", "CORPUS"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family.upper(): exported(tmp_path_factory.mktemp(family), family) for family in ("encoder", "decoder")}


@pytest.mark.parametrize("place", ["column", "struct", "dictionary"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_code_of_a_corpus(tmp_path: Path, models: dict[str, Path], command: str, place: str) -> None:
    field, array = places(tmp_path / "fired")[place]
    corpus = parquet_with(tmp_path / "corpus.parquet", field.with_name("text"), array, beside="label")
    (tmp_path / "sweep.yaml").write_text(TINY.replace("builtin: python-docs", f"path: {corpus}"))
    paths = models | {"CORPUS": corpus, "SWEEP": tmp_path / "sweep.yaml", "OUTPUT": tmp_path / "output"}
    arguments = [str(paths.get(word, word)) for word in COMMANDS[command]]
    done = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path / "results")])
    assert not (tmp_path / "fired").exists()
    assert done.exit_code == 2, done.output
    assert f"({OF_RAY})" in done.output
    assert "write the file again with plain columns" in done.output
