"""CSV files of ours in a spreadsheet of a colleague."""

import ast
import csv
import io
import re
from pathlib import Path

import pytest

from command import ROOT
from sweep_examples import record
from sweeps.analysis.result_tables import write_trials_csv
from sweeps.records.csv_tables import write_csv
from sweeps.records.outcomes import Outcome

FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://evil.example")']


def cells(columns: list[str], rows: list[list[object]]) -> list[list[str]]:
    file = io.StringIO(newline="")
    write_csv(file, columns, rows)
    return list(csv.reader(io.StringIO(file.getvalue(), newline="")))


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_text_that_begins_a_formula_is_quoted_in_rows_and_header(formula: str) -> None:
    assert cells([formula], [[formula]]) == [[f"'{formula}"], [f"'{formula}"]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_no_text_begins_a_row_of_its_own(end: str) -> None:
    file = io.StringIO(newline="")
    write_csv(file, ["a", "b"], [["safe\r=1", "x\n=2"], ["y\r\n=3", 4]], line_end=end)
    assert file.getvalue() == f'a,b{end}"safe\r=1","x\n=2"{end}"y\r\n=3",4{end}'


def test_numbers_and_other_texts_stay() -> None:
    row = [-0.5, -3, 1e-4, float("-inf"), None, True, "a=b", " =1", "'=1", "trial-0001", ""]
    assert cells(["a"] * len(row), [row])[1] == ["" if value is None else str(value) for value in row]


def test_trials_csv_quotes_reasons_and_settings_and_keeps_negative_numbers(tmp_path: Path) -> None:
    one = record(1, Outcome.FAILED).model_copy(
        update={"reason": "=1+1", "settings": {"training.schedule": "@wsd"}, "metrics": {"a/b": -0.5}}
    )
    write_trials_csv(tmp_path / "trials.csv", [one])
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["reason"], row["training.schedule"], row["a_b"]) == ("'=1+1", "'@wsd", "-0.5")


def test_no_other_module_writes_csv() -> None:
    writing = {
        path.name
        for package in ("data_pipeline", "core", "sweeps")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and re.search(r"csv\.(\w*[wW]riter|write_csv)|\.to_csv|\.savetxt", ast.unparse(node))
    }
    assert writing == {"csv_tables.py"}
