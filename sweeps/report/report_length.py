"""The section of a report on the length of training: best settings by length, predicted beside measured loss."""

from collections.abc import Iterator

from sweeps.analysis.full_length import FullLength, full_length
from sweeps.analysis.sweep_findings import Findings
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.report.report_blocks import Block, Bullets, Cell, Paragraph, Section, Table, number
from sweeps.search_space.distribution import format_setting, settings_in_words, short_name

_TITLE = "Length of training"


def length_section(findings: Findings) -> Section:
    """Path of the best settings over the length, exponents, and predictions beside trainings in full."""
    sweep = findings.sweep
    if sweep.early_stopping.method != "full-length":
        words = (
            "Losses of this sweep were compared at equal lengths. The best learning rate and batch size move with the "
            "length of training; early_stopping.method: full-length measures how."
        )
        return Section(_TITLE, [Paragraph(words)])
    rungs = rung_tokens(sweep.early_stopping, sweep.budget.trial_tokens)
    found = full_length(sweep, findings.records, rungs)
    if found is None:
        return Section(_TITLE, [Paragraph("No probe has ended yet.")])
    return Section(_TITLE, list(_blocks(findings, found)))


def _blocks(findings: Findings, found: FullLength) -> Iterator[Block]:
    paths = list(found.path[0].settings)
    rows: list[list[Cell]] = [
        [f"{one.tokens:,}", *(format_setting(one.settings[path]) for path in paths), _between(one.loss, one.half_width)]
        for one in found.path
    ]
    yield Paragraph(
        "Best settings at each length, by a model of all losses of this sweep; in nats per predicted token."
    )
    yield Table(["tokens", *map(short_name, paths), "loss (95 %)"], rows, "optimum-by-length")
    if found.exponents:
        yield Bullets([_exponent_in_words(path, found) for path in found.exponents])
    if found.doubts:
        yield Bullets([f"In doubt: {doubt}." for doubt in found.doubts])
    if found.confirmations:
        yield Paragraph("Trainings in full beside their prediction from the probes alone.")
        confirmed: list[list[Cell]] = [
            [
                one.record.name,
                settings_in_words(one.record.settings),
                _between(one.predicted, one.half_width),
                number(one.record.loss),
                "inside" if one.is_inside else "outside",
            ]
            for one in found.confirmations
        ]
        yield Table(["trial", "settings", "predicted (95 %)", "measured", "interval"], confirmed, "confirmations")
    yield from _short_runs_in_words(findings, found)


def _short_runs_in_words(findings: Findings, found: FullLength) -> Iterator[Block]:
    probe, best = found.best_probe, findings.best
    if probe is None or best is None or best.loss is None or probe.settings == best.settings:
        return
    rung = max(probe.rung_losses)
    yield Paragraph(
        f"A ranking of short runs would have chosen {probe.name} ({settings_in_words(probe.settings)}), which has the "
        f"lowest loss at {rung:,} tokens. In full, its settings are predicted to come to "
        f"{found.predicted_of_best_probe:.4f}; the winner came to {best.loss:.4f}."
    )


def _exponent_in_words(path: str, found: FullLength) -> str:
    one = found.exponents[path]
    source = "learnt from this sweep" if one.is_learnt else "from published work; this sweep did not narrow it"
    return (
        f"The best {short_name(path)} grows as tokens to the power {one.value:.2f} ({one.low:.2f} to {one.high:.2f}, "
        f"95 %), {source}."
    )


def _between(mean: float, half_width: float) -> str:
    return f"{mean:.4f} ± {half_width:.4f}"
