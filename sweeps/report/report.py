"""The report of a sweep for people: report.html and EXPERIMENT.md, from the records and reports on disk."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.files.whole_files import write_atomically
from sweeps.analysis.result_tables import num_searched
from sweeps.analysis.sweep_findings import Findings, gather
from sweeps.figures.plot_style import standalone
from sweeps.records.result_parts import FailedPart, ResultParts
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.report import report_comparison as comparison
from sweeps.report import report_costs as costs
from sweeps.report import report_results as results
from sweeps.report import report_setup as setup
from sweeps.report.experiment_record import markdown_record
from sweeps.report.report_blocks import Block, Failed, Paragraph, Picture, Section, Table, number
from sweeps.report.report_length import length_section
from sweeps.report.report_page import html_page
from sweeps.report.report_tasks import tasks_section
from sweeps.settings.sweep_config import SweepConfig


def write_report(
    folder: Path,
    sweep: SweepConfig,
    records: Sequence[TrialRecord],
    summary: dict[str, Any],
    parts: ResultParts | None = None,
) -> None:
    """Write report.html and EXPERIMENT.md into a sweep's results folder, each replaced whole.

    Works on a running sweep too: a section without data states that. A section or picture that cannot be made is named
    in its place, and so is a file that cannot be written.

    Args:
        parts: Receives the parts that fail. None: the failure of a file is raised.
        summary: The dictionary of `result_tables.summarize`. Optional keys add to the report: `command` (text or
            arguments), `git` and `hardware` (names to values, read when the sweep began), `model` (path of the winner),
            `samples` (dumped `sample_outputs.Sample`s).
    """
    guard = parts or ResultParts(folder)
    status = str(summary.get("status") or SweepStatus.RUNNING)
    subtitle = f"pretune sweep, {status}. Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    box, sections = _content(folder, sweep, records, summary, guard)
    files: dict[str, Callable[[], str]] = {
        "report.html": lambda: html_page(
            title=sweep.name,
            subtitle=subtitle,
            summary=box,
            sections=[sections[name] for name in _PAGE if name in sections],
        ),
        "EXPERIMENT.md": lambda: markdown_record(
            title=sweep.name,
            subtitle=subtitle,
            summary=box,
            sections=[sections[name] for name in _RECORD if name in sections],
        ),
    }
    for name, text_of in files.items():
        try:
            write_atomically(folder / name, text_of())
        except Exception as error:
            if parts is None:
                raise
            parts.note(name, error)


def write_pictures(into: Path, folder: Path, sweep: SweepConfig, summary: dict[str, Any]) -> list[Path]:
    """Write each picture of a sweep's report as an SVG file with its name in the page.

    Args:
        folder: The sweep's results folder.
    """
    findings = gather(folder, sweep, TrialStore(folder / "trials").load_all(), summary)
    sections = _sections(findings, ResultParts(folder))
    blocks = [block for section in sections.values() for block in section.blocks]
    into.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in (block.svg for block in blocks if isinstance(block, Picture)):
        name = picture.split('aria-label="', 1)[1].split('"', 1)[0]
        paths.append(into / f"{name}.svg")
        write_atomically(paths[-1], standalone(picture) + "\n")
    return paths


_PAGE = (
    *(
        "purpose",
        "ranking",
        "tasks",
        "ties",
        "length",
        "budgets",
        "curves",
        "settings",
        "next",
        "comparison",
        "replay",
        "fairness",
        "samples",
        "memory",
        "time",
    ),
    *("noise", "trials", "waste", "problems", "timeline", "setup", "data", "environment"),
)
"""Results first, their setup and course after them."""

_RECORD = (
    *("purpose", "setup", "environment", "data", "timeline", "trials", "errors", "time", "memory", "noise"),
    *(
        "curves",
        "samples",
        "ranking",
        "tasks",
        "ties",
        "length",
        "budgets",
        "settings",
        "comparison",
        "replay",
        "fairness",
        "targets",
        "waste",
        "problems",
    ),
    *("conclusions", "next"),
)
"""The order of a laboratory's record: goal, setup, course, results, conclusions."""


_MAKERS: dict[str, Callable[[Findings], Section]] = {
    "purpose": setup.purpose_section,
    "setup": setup.setup_section,
    "environment": setup.environment_section,
    "data": setup.data_section,
    "timeline": setup.timeline_section,
    "trials": costs.outcomes_section,
    "errors": costs.errors_section,
    "time": costs.time_section,
    "memory": costs.memory_section,
    "noise": costs.noise_section,
    "curves": results.curves_section,
    "samples": lambda findings: _samples_section(findings),
    "ranking": results.ranking_section,
    "tasks": tasks_section,
    "ties": comparison.ties_section,
    "length": length_section,
    "budgets": comparison.budgets_section,
    "settings": results.settings_section,
    "comparison": results.comparison_section,
    "replay": comparison.replay_section,
    "fairness": comparison.fairness_section,
    "targets": lambda findings: _targets_section(findings),
    "waste": costs.waste_section,
    "problems": costs.problems_section,
    "conclusions": results.conclusions_section,
    "next": results.next_section,
}


def _content(
    folder: Path, sweep: SweepConfig, records: Sequence[TrialRecord], summary: dict[str, Any], guard: ResultParts
) -> tuple[list[Block], dict[str, Section]]:
    """The box at the top, and all sections by name."""
    try:
        findings = gather(folder, sweep, records, summary)
    except Exception as error:
        return [Paragraph(str(guard.note("the report", error)))], {
            name: Section(name.capitalize(), []) for name in _MAKERS
        }

    def failed(failure: FailedPart) -> list[Block]:
        return [Paragraph(str(failure))]

    box = guard.make("the summary of the report", lambda: results.summary_box(findings), failed)
    return box, _sections(findings, guard)


def _sections(findings: Findings, guard: ResultParts) -> dict[str, Section]:
    left_out = () if findings.sweep.evaluation.tasks else ("tasks",)
    return {name: section_of(name, make, findings, guard) for name, make in _MAKERS.items() if name not in left_out}


def section_of(name: str, make: Callable[[Findings], Section], findings: Findings, guard: ResultParts) -> Section:
    """A section of the report; if it or one of its pictures cannot be made, the failure is named in its place."""

    def failed(failure: FailedPart) -> Section:
        return Section(name.capitalize(), [Paragraph(str(failure))])

    section = guard.make(f"section {name} of the report", lambda: make(findings), failed)
    blocks = [
        Paragraph(str(guard.note(f"picture of {block.name}", block.error))) if isinstance(block, Failed) else block
        for block in section.blocks
    ]
    return Section(section.title, blocks)


def _samples_section(findings: Findings) -> Section:
    samples = findings.summary.get("samples") or []
    if not samples:
        return Section("Samples", [Paragraph("No samples were drawn.")])
    rows = [[one["text"], one["made"], number(one["loss_nats_per_token"])] for one in samples]
    words = (
        "Rows of the holdout with masked tokens in brackets, and the tokens that the best model predicts for them."
        if findings.sweep.objective.masked_lm
        else "Beginnings of rows of the holdout, and the continuation by the best model. The loss is that of the whole "
        "row."
    )
    return Section("Samples", [Paragraph(words), Table(["holdout", "model", "loss"], rows, "samples")])


def _targets_section(findings: Findings) -> Section:
    done, most = num_searched(findings.records), findings.sweep.num_trials
    words = f"The sweep file has no target loss. {done} of {max(done, most)} trials of the search have ended."
    return Section("Targets", [Paragraph(words)])
