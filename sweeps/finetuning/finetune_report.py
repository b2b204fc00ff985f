"""Report of a fine-tuning for people: report.html, figures, and the final summary on the terminal."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable

from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.settings import format_bytes
from sweeps.figures.plot_style import standalone
from sweeps.finetuning.class_metrics import ClassMetrics
from sweeps.finetuning.class_plots import confusion_picture, curves_picture
from sweeps.finetuning.classifier_results import ClassifierRun, FinetuneResult
from sweeps.report.report_blocks import Block, Cell, Facts, Paragraph, Picture, Section, Table, number
from sweeps.report.report_page import html_page

_CLASSES_SHOWN = 12


def write_page(end: FinetuneResult) -> None:
    """Write report.html and confusion.svg into the fine-tuning's folder."""
    confusion = confusion_picture(end.pretrained.metrics.confusions, end.found.classes)
    write_atomically(end.folder / "confusion.svg", standalone(confusion) + "\n")
    summary: list[Block] = [Paragraph(_verdict(end)), _results_table(end)]
    sections = [
        Section("Setup", [Facts(list(_facts(end)))]),
        Section("Confusion matrix", [Picture(confusion, _CONFUSION_CAPTION)]),
        Section("Classes", [_classes_table(end)]),
        Section("Runs", list(_runs(end))),
    ]
    page = html_page(
        title=f"{end.settings.label} of {end.table}",
        subtitle=f"pretune finetune. Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        summary=summary,
        sections=sections,
    )
    write_atomically(end.folder / "report.html", page)


_CONFUSION_CAPTION = (
    "Held-out rows: true classes in rows, most frequent first; predicted classes in columns. A stronger colour is a "
    "larger share of the true class."
)


def print_figures(figures: dict[str, Any], folder: str, console: Console) -> None:
    """Print the final summary: table of results, worst classes, paths of the files.

    Args:
        figures: Content of metrics.json.
        folder: Folder of metrics.json.
    """
    table = TerminalTable(box=None, pad_edge=False, header_style="bold")
    for name in ("", "accuracy", "95 %", "macro F1"):
        table.add_column(name, justify="left" if not name else "right")
    rows = [("from the pretrained model", figures)]
    if figures["from_scratch"] is not None:
        rows.append(("from scratch", figures["from_scratch"]))
    rows.append((f"always {figures['majority_class']['name']!r}, the most frequent", figures["majority_class"]))
    for name, scores in rows:
        low, high = scores["accuracy_95_percent"]
        table.add_row(name, f"{scores['accuracy']:.4f}", f"{low:.3f} to {high:.3f}", f"{scores['macro_f1']:.4f}")
    console.print()
    console.print(table)
    worst = sorted(figures["classes"], key=lambda one: one["f1"])
    if worst and worst[0]["f1"] < 1:
        words = [
            f"{one['name']} (F1 {one['f1']:.2f}{', predicted ' + one['mistaken_for'] if one['mistaken_for'] else ''})"
            for one in worst[:3]
            if one["f1"] < 1
        ]
        console.print(f"worst    {', '.join(words)}", markup=False, highlight=False, soft_wrap=True)
    for name, value in (
        ("model", figures["model"]),
        ("report", f"{folder}/report.html"),
        ("tables", f"{folder}/metrics.json, {folder}/predictions.csv"),
    ):
        console.print(f"{name:<8} {value}", markup=False, highlight=False, soft_wrap=True)


def print_data(end: FinetuneResult | Any, console: Console) -> None:
    """Print the rows read, and the rows per class on both sides of the split.

    Args:
        end: The plan or the result of a fine-tuning.
    """
    found, is_held_out = end.found, end.is_held_out
    trained_on = dict.fromkeys(found.classes, 0)
    held_out = dict(trained_on)
    for name, is_out in zip(found.labels, is_held_out.tolist(), strict=True):
        (held_out if is_out else trained_on)[name] += 1
    rest = [f"{len(found.rejects):,} rejected"] if found.rejects else []
    if found.left_out:
        rest.append(f"{found.left_out.total():,} of {len(found.left_out):,} rare classes left out")
    if found.num_contradictory:
        rest.append(f"{found.num_contradictory:,} with texts that also have other labels")
    if end.num_cut:
        rest.append(f"{end.num_cut:,} texts cut")
    console.print(
        f"rows     {len(found.texts):,}{' (' + ', '.join(rest) + ')' if rest else ''}: {sum(trained_on.values()):,} to "
        f"train on, {sum(held_out.values()):,} held out; equal texts are on the same side",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    order = sorted(found.classes, key=lambda name: -trained_on[name] - held_out[name])
    shown = [f"{name} {trained_on[name]:,} + {held_out[name]:,}" for name in order[:_CLASSES_SHOWN]]
    more = f", and {len(order) - _CLASSES_SHOWN} more" if len(order) > _CLASSES_SHOWN else ""
    console.print(
        f"classes  {len(order)} in {found.label_column!r} (trained on + held out): {', '.join(shown)}{more}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _verdict(end: FinetuneResult) -> str:
    kept = end.pretrained.metrics
    low, high = kept.accuracy_interval
    words = (
        f"{kept.accuracy:.1%} of {kept.num_rows:,} held-out rows are classified correctly (95 % interval {low:.1%} to "
        f"{high:.1%}), macro F1 {kept.macro_f1:.4f}, over {len(end.found.classes)} classes. Always predicting "
        f"`{end.commonest}` gives {end.majority.accuracy:.1%}."
    )
    if end.scratch is not None:
        gain = kept.accuracy - end.scratch.metrics.accuracy
        words += (
            f" The same model from random weights, with the same choice of settings, reaches "
            f"{end.scratch.metrics.accuracy:.1%}: pretraining gains {gain:+.1%}."
        )
    return words


def _results_table(end: FinetuneResult) -> Table:
    rows: list[list[Cell]] = [_result("from the pretrained model", end.pretrained.metrics, end.pretrained.run)]
    if end.scratch is not None:
        rows.append(_result("from scratch", end.scratch.metrics, end.scratch.run))
    rows.append(_result("always the most frequent class", end.majority, None))
    return Table(["", "accuracy", "macro F1", "holdout loss", "best epoch"], rows, "results")


def _result(name: str, metrics: ClassMetrics, run: ClassifierRun | None) -> list[Cell]:
    return [
        name,
        number(metrics.accuracy),
        number(metrics.macro_f1),
        number(run.loss if run else None),
        number(run.best_epoch if run else None, ",.2f"),
    ]


def _facts(end: FinetuneResult) -> Iterator[tuple[str, str]]:
    found, settings = end.found, end.settings
    if settings.purpose:
        yield "purpose", settings.purpose
    yield "pretrained model", f"`{end.weights_of}`, {end.num_parameters:,} parameters with its new head"
    yield "rows", f"{len(found.texts):,} of `{end.table}` with a text and a label in `{settings.label}`"
    if found.rejects:
        yield "rejected", f"{len(found.rejects):,}; rejects.jsonl lists each with its reason"
    if found.left_out:
        yield (
            "left out",
            f"{found.left_out.total():,} rows of {len(found.left_out):,} classes with fewer than {settings.least_rows}",
        )
    if found.num_contradictory:
        yield (
            "contradictory",
            f"{found.num_contradictory:,} rows have a text that also has another label; no classifier can predict all "
            "of them correctly",
        )
    yield (
        "split",
        f"{int((~end.is_held_out).sum()):,} to train on, {int(end.is_held_out.sum()):,} held out "
        f"({settings.holdout:.0%} by a hash of the text: equal texts are on the same side)",
    )
    yield "row length", f"{end.row_tokens} tokens; {end.num_cut:,} longer texts are truncated"
    yield (
        "kept",
        "the epoch and the run with the lowest holdout loss. This choice makes the figures slightly better than they "
        "would be on fresh rows",
    )
    yield "schedule", f"{', '.join(f'{one:g}' for one in settings.epochs)} epochs, linear, dropout {settings.dropout:g}"
    yield "model", f"`{end.model}`"


def _classes_table(end: FinetuneResult) -> Table:
    rows: list[list[Cell]] = [
        [
            one.name,
            number(one.num_trained, ",.0f"),
            number(one.num_held_out, ",.0f"),
            number(one.precision),
            number(one.recall),
            number(one.f1, bar=one.f1),
            one.mistaken_for,
        ]
        for one in sorted(end.pretrained.metrics.classes, key=lambda one: -one.num_trained - one.num_held_out)
    ]
    columns = ["class", "trained on", "held out", "precision", "recall", "F1", "most frequent confusion"]
    return Table(columns, rows, "classes")


def _runs(end: FinetuneResult) -> Iterator[Block]:
    curves = curves_picture(end.runs)
    if curves is not None:
        yield Picture(curves, "Holdout after every epoch. Dashed lines: training from random weights.")
    rows: list[list[Cell]] = [
        [
            run.start,
            number(run.learning_rate, "g"),
            number(run.batch_size, "d"),
            number(run.epochs, "g"),
            number(run.seed, "d"),
            run.outcome,
            number(run.loss if run.evaluations else None),
            number(run.accuracy if run.evaluations else None),
            number(run.macro_f1 if run.evaluations else None),
            number(run.best_epoch, ",.2f"),
            number(run.training_s, ",.1f"),
            format_bytes(run.peak_memory_bytes) if run.peak_memory_bytes else "",
        ]
        for run in sorted(end.runs, key=lambda run: run.loss)
    ]
    columns = [
        "start",
        "learning rate",
        "batch",
        "epochs",
        "seed",
        "outcome",
        "loss",
        "accuracy",
        "macro F1",
        "best epoch",
    ]
    yield Table([*columns, "seconds", "peak memory"], rows, "runs")
