"""Feature vectors: those of transformers, in the table's order, whatever the batch."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from small_models import exported
from sweeps.commands.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [
    "the red cat",
    "a house",
    "the old dog sees a big house and the old dog sees a red cat",
    "dog",
    "x " * 200,
    "the",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: exported(tmp_path_factory.mktemp(family), family) for family in ("encoder", "decoder")}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second row cannot be used."""
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    rows = [{"id": f"r{number}", "text": text} for number, text in enumerate(TEXTS)]
    path.write_text("\n".join(map(json.dumps, [rows[0], {"id": "bad", "text": ""}, *rows[1:]])))
    return path


def embedded(model: Path, table: Path, out: Path, *more: object) -> tuple[NDArray[np.float32], dict[str, list[object]]]:
    done = CliRunner().invoke(app, ["embed", str(model), str(table), "--out", str(out), *map(str, more)])
    assert done.exit_code == 0, done.output
    found = pq.read_table(out)
    vectors = np.stack([np.asarray(row, np.float32) for row in found.column("features").to_pylist()])
    return vectors, {name: found.column(name).to_pylist() for name in found.column_names if name != "features"}


@pytest.mark.parametrize(
    ("family", "pooling"), [("encoder", "mean"), ("encoder", "first"), ("decoder", "mean"), ("decoder", "last")]
)
def test_vectors_are_those_of_transformers_whatever_the_batch(
    models: dict[str, Path], table: Path, tmp_path: Path, family: str, pooling: str
) -> None:
    theirs, tokenizer = (auto.from_pretrained(models[family]) for auto in (AutoModel, AutoTokenizer))
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:30]
        row = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            hidden_TD = theirs(input_ids=row).last_hidden_state[0]
        expected.append({"mean": hidden_TD.mean(0), "first": hidden_TD[0], "last": hidden_TD[-1]}[pooling].numpy())
    for batch_size in (1, 2, 50):
        found, columns = embedded(
            models[family],
            table,
            tmp_path / f"{batch_size}.parquet",
            "--pool",
            pooling,
            "--batch-size",
            batch_size,
            "--keep",
            "id",
        )
        assert columns == {"row": [0, 2, 3, 4, 5, 6], "id": [f"r{number}" for number in range(len(TEXTS))]}
        # Two implementations add the same fp32 numbers in another order; vectors are of size one a number.
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-5)


def test_many_row_groups_are_one_table_in_order(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"the red cat {number}" for number in range(100)))
    found, columns = embedded(models["encoder"], path, tmp_path / "few.parquet", "--batch-size", 2)
    whole, _ = embedded(models["encoder"], path, tmp_path / "whole.parquet", "--batch-size", 100)
    assert pq.ParquetFile(tmp_path / "few.parquet").num_row_groups > 1
    assert columns["row"] == list(range(100))
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


def test_what_cannot_be_embedded_is_one_line_and_leaves_no_file(
    models: dict[str, Path], table: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text('text,id\n"",1\n"",2\n"",3\n')
    for arguments, words in (
        ((models["decoder"], table, "--pool", "first"), "use last or mean"),
        ((models["encoder"], table, "--pool", "mode"), "choose one of mean, first, last"),
        ((models["encoder"], table, "--keep", "idd"), "did you mean --keep id?"),
        ((models["encoder"], table, "--text", "txt"), "did you mean --text text?"),
        ((models["encoder"], empty), "no row with a usable text"),
    ):
        done = CliRunner().invoke(app, ["embed", *map(str, arguments), "--out", str(tmp_path / "out")])
        assert done.exit_code == 2, done.output
        assert words in done.output
        assert done.output.count("\n") == 1
    assert list(tmp_path.glob("*out*")) == []
