"""The report of a sweep for people: report.html and EXPERIMENT.md, from the records and reports on disk."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.schema.whole_files import write_atomically
from sweeps.analysis.result_tables import num_searched
from sweeps.analysis.sweep_findings import Findings, gather
from sweeps.figures.plot_style import standalone
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.report import report_comparison as comparison
from sweeps.report import report_costs as costs
from sweeps.report import report_results as results
from sweeps.report import report_setup as setup
from sweeps.report.experiment_record import markdown_record
from sweeps.report.report_blocks import Paragraph, Picture, Section, Table, number
from sweeps.report.report_page import html_page
from sweeps.settings.sweep_config import SweepConfig


def write_report(folder: Path, sweep: SweepConfig, records: Sequence[TrialRecord], summary: dict[str, Any]) -> None:
    """Write report.html and EXPERIMENT.md into a sweep's results folder, each replaced whole.

    Works on a running sweep too: a section without data states that.

    Args:
        summary: The dictionary of `result_tables.summarize`. Optional keys add to the report: `command` (text or
            arguments), `git` and `hardware` (names to values, read when the sweep began), `model` (path of the winner),
            `samples` (dumped `sample_outputs.Sample`s).
    """
    findings = gather(folder, sweep, records, summary)
    status = str(summary.get("status") or SweepStatus.RUNNING)
    subtitle = f"pretune sweep, {status}. Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    box = results.summary_box(findings)
    sections = _sections(findings)
    page = html_page(title=sweep.name, subtitle=subtitle, summary=box, sections=[sections[name] for name in _PAGE])
    write_atomically(folder / "report.html", page)
    parts = [sections[name] for name in _RECORD]
    record = markdown_record(title=sweep.name, subtitle=subtitle, summary=box, sections=parts)
    write_atomically(folder / "EXPERIMENT.md", record)


def write_pictures(into: Path, folder: Path, sweep: SweepConfig, summary: dict[str, Any]) -> list[Path]:
    """Write each picture of a sweep's report as an SVG file with its name in the page.

    Args:
        folder: The sweep's results folder.
    """
    findings = gather(folder, sweep, TrialStore(folder / "trials").load_all(), summary)
    blocks = [block for section in _sections(findings).values() for block in section.blocks]
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
        "ties",
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
        "ties",
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


def _sections(findings: Findings) -> dict[str, Section]:
    return {
        "purpose": setup.purpose_section(findings),
        "setup": setup.setup_section(findings),
        "environment": setup.environment_section(findings),
        "data": setup.data_section(findings),
        "timeline": setup.timeline_section(findings),
        "trials": costs.outcomes_section(findings),
        "errors": costs.errors_section(findings),
        "time": costs.time_section(findings),
        "memory": costs.memory_section(findings),
        "noise": costs.noise_section(findings),
        "curves": results.curves_section(findings),
        "samples": _samples_section(findings),
        "ranking": results.ranking_section(findings),
        "ties": comparison.ties_section(findings),
        "budgets": comparison.budgets_section(findings),
        "settings": results.settings_section(findings),
        "comparison": results.comparison_section(findings),
        "replay": comparison.replay_section(findings),
        "fairness": comparison.fairness_section(findings),
        "targets": _targets_section(findings),
        "waste": costs.waste_section(findings),
        "problems": costs.problems_section(findings),
        "conclusions": results.conclusions_section(findings),
        "next": results.next_section(findings),
    }


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
