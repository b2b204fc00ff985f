"""Sections of a report on the experiment: purpose, settings, command, git, environment, data, timeline."""

import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from core.costs.parameter_counts import parameter_counts
from core.settings.model_config import ModelConfig
from data_pipeline.schema.manifest import Manifest
from data_pipeline.schema.settings import clock
from sweeps.analysis.sweep_findings import Findings
from sweeps.early_stopping.rungs import proposer_in_words, rule_in_words, rung_tokens
from sweeps.figures.cost_plots import timeline
from sweeps.records.git_state import git_state
from sweeps.report.report_blocks import (
    Block,
    Code,
    Facts,
    Paragraph,
    Section,
    Table,
    drawn,
    number,
    without_empty_columns,
)
from sweeps.search_space.distribution import format_setting
from sweeps.settings.sweep_file import dump_sweep


def purpose_section(findings: Findings) -> Section:
    """The question of the sweep, in the user's words."""
    purpose = findings.sweep.purpose.strip()
    return Section("Purpose", [Paragraph(purpose or "The sweep file has no `purpose`.")])


def setup_section(findings: Findings) -> Section:
    """Model, training, search, budget."""
    sweep, data = findings.sweep, findings.summary.get("data") or {}
    shape = findings.best or next(iter(findings.records), None)
    run = sweep.run_config(shape.settings if shape is not None else None)
    whose = f" ({shape.name})" if shape is not None and shape.settings else ""
    facts = [
        ("model", _model_in_words(run.model) + whose),
        ("objective", "masked LM" if sweep.objective.masked_lm else "causal LM"),
    ]
    if run.model.class_ is not None:
        # A report runs no code of the user: its trial knows the number.
        if shape is not None and shape.parameters is not None:
            facts.append(("parameters", f"{shape.parameters:,}{whose}"))
    elif data.get("vocabulary"):
        counts = parameter_counts(run, data["vocabulary"])
        trained = "" if run.training.lora is None else f", of which {counts.trainable:,} in adapters are trained"
        facts.append(("parameters", f"{counts.total:,}{trained}{whose}"))
    facts += [("swept", f"`{path}`: {distribution}") for path, distribution in sweep.search.items()]
    facts += [("starts with", _in_words(settings)) for settings in sweep.start_with]
    stopping = sweep.early_stopping
    facts += [
        ("proposed by", proposer_in_words(sweep)),
        *(("search from", str(words)) for words in findings.summary.get("search_from") or ()),
        (
            "stopped early by",
            rule_in_words(stopping, rung_tokens(stopping, sweep.budget.trial_tokens)),
        ),
        ("budget", f"{sweep.num_trials} trials of {sweep.budget.trial_tokens:,} tokens each"),
    ]
    return Section("Setup", [Facts(facts), Code(dump_sweep(sweep), "Sweep file with all defaults")])


def _model_in_words(model: ModelConfig) -> str:
    if model.class_ is not None:
        arguments = "".join(f", {name} {value}" for name, value in model.arguments.items())
        return (
            f"the class {model.class_} (SHA-256 {str(model.class_digest)[:12]}){arguments}, rows of "
            f"{model.sequence_length} tokens"
        )
    layers = f"{model.layers} layer{'s' if model.layers > 1 else ''}"
    form = f"{model.form} encoder" if model.family == "encoder" else "decoder"
    return f"{form}, {layers}, width {model.width}, {model.heads} heads, rows of {model.sequence_length} tokens"


def environment_section(findings: Findings) -> Section:
    """Command, git, versions, machine."""
    return Section("Command, code, environment", list(_environment(findings)))


def _environment(findings: Findings) -> Iterator[Block]:
    command = findings.summary.get("command")
    if command:
        yield Code(command if isinstance(command, str) else _as_typed(command))
    else:
        yield Paragraph("The command was not recorded.")
    recorded = findings.summary.get("git")
    state = git_state(Path.cwd()) if recorded is None else recorded
    if state:
        when = "when this report was written" if recorded is None else "when the sweep began"
        facts = state.items() if isinstance(state, dict) else [("state", str(state))]
        yield Paragraph(f"Git state of the working directory {when}:")
        yield Facts([(str(name), str(value)) for name, value in facts])
    else:
        yield Paragraph("Git state: none; the working directory was no git checkout.")
    yield Facts([*_machine(findings), *_versions(findings)])


def _as_typed(arguments: Sequence[str]) -> str:
    """The command line as a user types it: without the folder of the program."""
    program, *rest = map(str, arguments)
    typed = ["python", "-m", "sweeps"] if Path(program).name == "__main__.py" else [Path(program).name]
    return shlex.join([*typed, *rest])


def _machine(findings: Findings) -> Iterator[tuple[str, str]]:
    recorded: dict[str, Any] | None = findings.summary.get("hardware")
    if recorded is not None:
        yield from ((str(name), str(value)) for name, value in recorded.items())
        return
    yield "report written on", f"{platform.platform(terse=True)}, {platform.machine()}, {os.cpu_count()} processors"
    # Their names would need a CUDA context, and a sweep may hold the cards.
    yield "GPUs", str(torch.cuda.device_count() or "none")


def _versions(findings: Findings) -> Iterator[tuple[str, str]]:
    versions = findings.summary.get("versions") or {}
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    for name, key in (("sweep", "identity"), ("MLflow store", "mlflow_uri"), ("MLflow run", "mlflow_run_id")):
        if findings.summary.get(key):
            yield name, str(findings.summary[key])


def data_section(findings: Findings) -> Section:
    """Rows read, kept and rejected; splits, tokenizer and files of the prepared corpus."""
    manifest, data = findings.manifest, findings.summary.get("data") or {}
    if manifest is not None:
        return Section("Data", list(_from_manifest(manifest)))
    if not data:
        return Section("Data", [Paragraph("The summary has no figures of the corpus.")])
    facts = [(name.replace("_", " "), _shown(value)) for name, value in data.items()]
    return Section(
        "Data", [Paragraph("The prepared corpus was deleted. These figures come from the summary."), Facts(facts)]
    )


def _from_manifest(manifest: Manifest) -> Iterator[Block]:
    read = max(manifest.rows_read, 1)
    counts = f"{manifest.rows_kept:,} of {manifest.rows_read:,} rows kept, {manifest.rows_rejected:,} rejected"
    again = f", {manifest.rows_duplicate:,} with the text of an earlier row" if manifest.rows_duplicate else ""
    yield Paragraph(f"{counts} ({manifest.rows_rejected / read:.2%}){again}.")
    if manifest.rejects:
        by_count = sorted(manifest.rejects.items(), key=lambda item: -item[1])
        yield Table(
            ["rejected because", "rows", "share of rows"],
            [[reason, number(count, ",d"), number(count / read, ".3%")] for reason, count in by_count],
            "rejects",
        )
    yield Table(
        ["split", "documents", "tokens", "rows", "padding", "truncated", "unknown tokens"],
        [
            [
                name,
                number(split.num_documents, ",d"),
                number(split.num_tokens, ",d"),
                number(manifest.rows[name].num_rows, ",d"),
                number(manifest.rows[name].num_padding_tokens, ",d"),
                number(manifest.rows[name].num_truncated_tokens, ",d"),
                number(split.num_unknown_tokens, ",d"),
            ]
            for name, split in manifest.splits.items()
        ],
        "splits",
    )
    tokenizer = manifest.tokenizer_report
    yield Facts(
        [
            ("tokenizer", f"{manifest.tokenizer.kind}, {tokenizer.vocabulary_size:,} entries"),
            ("bytes per token", f"{tokenizer.bytes_per_token:.2f}"),
            ("unknown tokens", f"{tokenizer.unknown_rate:.3%}"),
            ("fingerprint", manifest.fingerprint),
        ]
    )
    if manifest.files:
        files = Table(
            ["file", "format", "encoding", "rows read", "kept", "rejected", "note"],
            [
                [
                    Path(file.path).name,
                    file.format,
                    file.encoding or "",
                    number(file.rows_read, ",d"),
                    number(file.rows_kept, ",d"),
                    number(file.rows_rejected, ",d"),
                    file.refused or "",
                ]
                for file in manifest.files[:_MAX_FILES]
            ],
            "files",
        )
        yield without_empty_columns(files)
    if len(manifest.files) > _MAX_FILES:
        yield Paragraph(f"{len(manifest.files) - _MAX_FILES} more files are not listed.")
    if manifest.passed_over:
        names = ", ".join(f"{Path(file.path).name} ({file.why})" for file in manifest.passed_over[:_MAX_FILES])
        yield Paragraph(f"Files not read: {names}.")


_MAX_FILES = 20


def timeline_section(findings: Findings) -> Section:
    """Start and end of the sweep and of each trial."""
    started = sorted(record.started_at for record in findings.records if record.started_at)
    ended = sorted(record.ended_at for record in findings.records if record.ended_at)
    facts = []
    if started:
        facts.append(("first trial began", _moment(started[0])))
    if ended:
        facts.append(("last trial ended", _moment(ended[-1])))
    if findings.summary.get("wall_s") is not None:
        facts.append(("whole sweep", f"{clock(findings.summary['wall_s'])}, without the preparation of the corpus"))
    facts.append(("training in all trials", clock(sum(record.training_s for record in findings.records))))
    blocks: list[Block] = [Facts(facts)]
    caption = "Start and end of each trial, coloured by outcome."
    blocks += drawn("the timeline", lambda: timeline(findings), lambda: caption)
    return Section("Timeline", blocks)


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S %Z}"


def _in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{path}` {format_setting(value)}" for path, value in settings.items())


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
