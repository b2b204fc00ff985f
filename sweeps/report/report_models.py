"""The models of a sweep side by side: shape, size, speed and loss of each."""

from collections.abc import Iterator

from core.layers.feed_forward import feed_forward_kind
from core.models.size_matching import flops_a_token, num_parameters
from sweeps.analysis.sweep_findings import Findings, speed
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.report.report_blocks import Block, Bullets, Cell, Paragraph, Table, number, without_empty_columns
from sweeps.search_space.distribution import format_setting, short_name

_EQUAL_IN = "model.equal_in"


def model_blocks(findings: Findings) -> list[Block]:
    """A table with a row per trial, best first, and the feed-forwards of equal size compared in words.

    Empty where all trials train the same model.
    """
    paths = [path for path in findings.paths if path.startswith("model.")]
    if not paths:
        return []
    vocabulary = int((findings.summary.get("data") or {}).get("vocabulary") or findings.sweep.tokenizer.vocabulary)
    rows: list[list[Cell]] = []
    for record in findings.records:
        model = findings.sweep.run_config(record.settings).model
        # A report runs no code of the user: its trial knows the number of parameters.
        size = record.parameters if model.class_ else num_parameters(model) + vocabulary * model.width
        rows.append(
            [
                record.name,
                *(format_setting(findings.setting(record, path)) for path in paths),
                number(None if model.class_ else model.layers, "d"),
                number(model.feed_forward_width, "d"),
                number(size, ",d"),
                number(None if model.class_ else flops_a_token(model) / 1e6, ",.2f"),
                number(speed(record), ",.0f"),
                number(record.loss),
            ]
        )
    columns = [
        "trial", *map(short_name, paths), "layers", "inner width", "parameters", "Mflop a token", "tokens/s",
        "holdout loss",
    ]  # fmt: skip
    words = "Parameters include those of the vocabulary."
    if findings.sweep.model.class_ is None:
        words += (
            " Operations are those of the forward pass per token of a full row, without the vocabulary head, which is "
            "the same in all."
        )
    compared = list(_compared(findings))
    return [
        without_empty_columns(Table(columns, rows, "models")),
        Paragraph(words),
        *([Bullets(compared)] if compared else []),
    ]


def _compared(findings: Findings) -> Iterator[str]:
    """For each measure of equal size, the other feed-forwards against the best one."""
    for measure in dict.fromkeys(findings.setting(record, _EQUAL_IN) for record in findings.records):
        best: dict[str, TrialRecord] = {}
        for record in findings.records:  # best first
            if findings.setting(record, _EQUAL_IN) == measure and record.outcome is Outcome.COMPLETED:
                best.setdefault(feed_forward_kind(findings.sweep.run_config(record.settings).model), record)
        if measure is None or len(best) < 2:
            continue
        (first, leader), *others = best.items()
        against = "; ".join(_against(findings, kind, record, leader) for kind, record in others)
        yield f"Equal in {measure}: {first} has the lowest loss, {leader.loss:.4f} nats per token. {against}."


def _against(findings: Findings, kind: str, record: TrialRecord, leader: TrialRecord) -> str:
    """One feed-forward against the best, in loss, size, operations and speed."""
    models = [findings.sweep.run_config(one.settings).model for one in (record, leader)]
    parameters, operations = (measure(models[0]) / measure(models[1]) for measure in (num_parameters, flops_a_token))
    rates = [speed(one) for one in (record, leader)]
    faster = f", {rates[0] / rates[1]:.2f} times its tokens/s" if rates[0] and rates[1] else ""
    loss = (record.loss or 0.0) - (leader.loss or 0.0)
    return (
        f"{kind} {loss:+.4f} nats, {parameters:.2f} times its parameters without the vocabulary, "
        f"{operations:.2f} times its operations per token{faster}"
    )
