"""What a person reads of a sweep: report.html and EXPERIMENT.md, from records and reports on disk."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweeps import report_findings as found
from sweeps import report_setup as setup
from sweeps.experiment_record import markdown_record
from sweeps.findings import Findings, gather
from sweeps.report_blocks import Paragraph, Section
from sweeps.report_page import html_page
from sweeps.sweep_config import SweepConfig
from sweeps.trial_records import TrialRecord, write_atomically


def write_report(folder: Path, sweep: SweepConfig, records: Sequence[TrialRecord], summary: dict[str, Any]) -> None:
    """Write report.html and EXPERIMENT.md into a sweep's results folder, each replaced whole.

    May be called while the sweep runs: what is not known yet is said so.

    Args:
        summary: As `results.summarize` makes it. Used besides, where present: `command` (text or arguments), `git`
            and `hardware` (names to values, as they were when the sweep began), `model` (path of the winner).
    """
    findings = gather(folder, sweep, records, summary)
    status = str(summary.get("status") or "running")
    subtitle = f"pretune sweep, {status}. Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    box = found.summary_box(findings)
    page = html_page(title=sweep.name, subtitle=subtitle, summary=box, sections=_for_a_reader(findings))
    write_atomically(folder / "report.html", page)
    record = markdown_record(title=sweep.name, subtitle=subtitle, summary=box, sections=_for_the_record(findings))
    write_atomically(folder / "EXPERIMENT.md", record)


def _for_a_reader(findings: Findings) -> list[Section]:
    """Results first, how they came about after."""
    return [
        setup.purpose_section(findings),
        found.ranking_section(findings),
        found.curves_section(findings),
        found.settings_section(findings),
        found.next_section(findings),
        found.comparison_section(findings),
        found.memory_section(findings),
        found.time_section(findings),
        found.noise_section(findings),
        found.outcomes_section(findings),
        found.waste_section(findings),
        found.problems_section(findings),
        setup.timeline_section(findings),
        setup.setup_section(findings),
        setup.data_section(findings),
        setup.environment_section(findings),
    ]


def _for_the_record(findings: Findings) -> list[Section]:
    """The order of a laboratory's record: goal, setup, course, results, conclusions."""
    return [
        setup.purpose_section(findings),
        setup.setup_section(findings),
        setup.environment_section(findings),
        setup.data_section(findings),
        setup.timeline_section(findings),
        found.outcomes_section(findings),
        found.errors_section(findings),
        found.time_section(findings),
        found.memory_section(findings),
        found.noise_section(findings),
        found.curves_section(findings),
        _samples_section(),
        found.ranking_section(findings),
        found.settings_section(findings),
        found.comparison_section(findings),
        _targets_section(findings),
        found.waste_section(findings),
        found.problems_section(findings),
        found.conclusions_section(findings),
        found.next_section(findings),
    ]


def _samples_section() -> Section:
    return Section("Samples", [Paragraph("None were drawn: the model in best/ restores masks and continues texts.")])


def _targets_section(findings: Findings) -> Section:
    done, budget = sum(record.is_done for record in findings.records), findings.sweep.budget.trials
    words = f"The sweep file states no target loss. Of the budget of {budget} trials, {done} are done."
    return Section("Targets", [Paragraph(words)])
