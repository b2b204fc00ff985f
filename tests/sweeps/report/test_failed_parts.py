"""A part of a report that cannot be made is named in its place, and all others are there."""

import json
from pathlib import Path
from typing import Any

import pytest
from swept_folder import example_records, example_sweep, write_results
from typer.testing import CliRunner

from sweeps.analysis.sweep_findings import Findings, gather
from sweeps.commands.cli import app
from sweeps.commands.command_frame import EXIT_PARTS_MISSING
from sweeps.records.result_parts import ERRORS_FILE, ResultParts
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.report.report import section_of, write_report
from sweeps.report.report_blocks import Paragraph, Section, drawn
from sweeps.settings.sweep_file import dump_sweep


def reported(
    folder: Path, records: list[TrialRecord], parts: ResultParts | None = None, **summary: Any
) -> tuple[str, str]:
    """The page and the record."""
    write_report(folder, example_sweep(), records, write_results(folder, records, **summary), parts)
    return tuple((folder / name).read_text() for name in ("report.html", "EXPERIMENT.md"))  # type: ignore[return-value]


@pytest.fixture
def records(tmp_path: Path) -> list[TrialRecord]:
    return example_records(TrialStore(tmp_path / "trials"), num_trials=5)


def test_a_section_that_cannot_be_made_is_named_in_its_place(tmp_path: Path, records: list[TrialRecord]) -> None:
    parts = ResultParts(tmp_path)
    page, text = reported(tmp_path, records, parts, samples=[{"text": "without the model's"}])
    words = "section samples of the report could not be made: KeyError: 'made' (a bug in pretune: please report it"
    assert [str(failed)[: len(words)] for failed in parts.failed] == [words]
    assert "section samples of the report could not be made: KeyError" in page
    assert words[:60] in text
    assert "<h2>Ranking</h2>" in page.replace(' id="ranking"', "")
    assert "## Ranking" in text


def test_a_picture_that_cannot_be_drawn_leaves_its_section(tmp_path: Path, records: list[TrialRecord]) -> None:
    parts = ResultParts(tmp_path)

    def figures_and_a_picture_of_nothing(_: Findings) -> Section:
        picture = drawn("the largest", lambda: str(max(records[:0], key=str)), lambda: "caption")
        return Section("Sizes", [Paragraph("figures"), *picture])

    findings = gather(tmp_path, example_sweep(), records, write_results(tmp_path, records))
    section = section_of("sizes", figures_and_a_picture_of_nothing, findings, parts)
    (failed,) = parts.failed
    assert failed.name == "picture of the largest"
    assert section == Section("Sizes", [Paragraph("figures"), Paragraph(str(failed))])
    assert Path(__file__).name in (tmp_path / ERRORS_FILE).read_text()


def test_data_that_cannot_be_read_leaves_a_report_that_says_so(tmp_path: Path, records: list[TrialRecord]) -> None:
    (tmp_path / MAP_FILE).write_text("{}")
    parts = ResultParts(tmp_path)
    page, text = reported(tmp_path, records, parts)
    assert "the report could not be made: ValidationError" in page
    assert "the report could not be made: ValidationError" in text


def test_a_file_that_cannot_be_written_leaves_the_other(tmp_path: Path, records: list[TrialRecord]) -> None:
    (tmp_path / "report.html").mkdir()
    summary = write_results(tmp_path, records)
    with pytest.raises(IsADirectoryError):
        write_report(tmp_path, example_sweep(), records, summary)
    parts = ResultParts(tmp_path)
    write_report(tmp_path, example_sweep(), records, summary, parts)
    assert [failed.name for failed in parts.failed] == ["report.html"]
    assert "## Ranking" in (tmp_path / "EXPERIMENT.md").read_text()


def test_the_command_names_the_part_that_failed_and_its_exit_code_says_it(
    tmp_path: Path, records: list[TrialRecord]
) -> None:
    (tmp_path / "sweep.yaml").write_text(dump_sweep(example_sweep()))
    summary = write_results(tmp_path, records, samples=[{}])
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == EXIT_PARTS_MISSING, result.output
    assert "missing  section samples of the report could not be made: KeyError" in result.output
    assert "Ranking" in (tmp_path / "report.html").read_text()
