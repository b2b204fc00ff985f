"""What a report says of models that were compared: what each is made of, beside what it came to."""

from core.equal_size import flops_a_token, num_parameters
from sweeps.findings import Findings, speed
from sweeps.report_blocks import Block, Cell, Paragraph, Table, number, without_empty_columns
from sweeps.search_space import format_setting, short_name


def model_blocks(findings: Findings) -> list[Block]:
    """A table with a line for each trial, best first; nothing where all trials train the same model."""
    paths = [path for path in findings.paths if path.startswith("model.")]
    if not paths:
        return []
    vocabulary = int((findings.summary.get("data") or {}).get("vocabulary") or findings.sweep.tokenizer.vocabulary)
    rows: list[list[Cell]] = []
    for record in findings.records:
        model = findings.sweep.run_config(record.settings).model
        rows.append(
            [
                record.name,
                *(format_setting(findings.setting(record, path)) for path in paths),
                number(model.layers, "d"),
                number(model.feed_forward_width, "d"),
                number(num_parameters(model) + vocabulary * model.width, ",d"),
                number(flops_a_token(model) / 1e6, ",.2f"),
                number(speed(record), ",.0f"),
                number(record.loss),
            ]
        )
    columns = [
        "trial", *map(short_name, paths), "layers", "inner width", "parameters", "Mflop a token", "tokens/s",
        "holdout loss",
    ]  # fmt: skip
    words = (
        "Parameters with the vocabulary's. Operations are those of the forward pass for one token of a full row, "
        "without the vocabulary head, which all have alike."
    )
    return [without_empty_columns(Table(columns, rows, "models")), Paragraph(words)]
