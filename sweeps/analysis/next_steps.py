"""Next steps: rules, each of which writes a sentence only if the figures support it."""

from collections.abc import Callable, Iterator

from data_pipeline.schema.settings import format_bytes
from sweeps.analysis.noise_floor import nats, remedy, verdict
from sweeps.analysis.space_widening import best_on_edges
from sweeps.analysis.sweep_findings import Findings
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import MemoryVerdict, TrialRecord
from sweeps.search_space.distribution import format_setting
from sweeps.settings.setting_paths import MICRO_BATCH

_LEARNING_RATE = "training.learning_rate"
_STILL_FALLING = 0.01
"""Least fall over the last quarter of the tokens, as a share of the loss."""
_MANY = 0.25
"""Share of trials or proposals above which memory gets a sentence."""


def next_steps(findings: Findings) -> list[str]:
    """Sentences, the most pressing first; each names an observation and a remedy."""
    rules: tuple[Callable[[Findings], Iterator[str]], ...] = (
        _left_over,
        _failed,
        _nothing_completed,
        _diverged,
        _short_of_memory,
        best_on_an_edge,
        _ties,
        _still_falling,
        _batch_against_noise,
        _waiting_for_data,
    )
    return [sentence for rule in rules for sentence in rule(findings)]


def _left_over(findings: Findings) -> Iterator[str]:
    num_left = len(findings.of(Outcome.INTERRUPTED)) + len(findings.of(None))
    if num_left and findings.summary.get("status") == SweepStatus.INTERRUPTED:
        yield (
            f"{_trials(num_left)} did not end. The same command resumes from the checkpoints. Finish the sweep before "
            "you draw conclusions from it."
        )


def _failed(findings: Findings) -> Iterator[str]:
    failed = findings.of(Outcome.FAILED)
    if failed:
        yield (
            f"{_trials(len(failed))} failed through a fault of the program or its environment, not of the settings: "
            f"read the log in trials/{failed[0].name}."
        )


def _nothing_completed(findings: Findings) -> Iterator[str]:
    if not findings.completed and findings.records and findings.summary.get("status") != SweepStatus.RUNNING:
        yield "No trial completed, so no settings can be recommended. The section Trials has the reasons."


def _diverged(findings: Findings) -> Iterator[str]:
    diverged = findings.of(Outcome.DIVERGED)
    if not diverged:
        return
    rates = [float(findings.setting(record, _LEARNING_RATE)) for record in diverged]
    stable = [float(findings.setting(r, _LEARNING_RATE)) for r in (*findings.completed, *findings.of(Outcome.STOPPED))]
    seen = f"{_trials(len(diverged))} diverged"
    if _LEARNING_RATE in findings.paths and (not stable or min(rates) > max(stable)):
        yield (
            f"{seen}, all at learning rates of {min(rates):.3g} or more, where no trial was stable: lower the upper "
            "end of the range, or lengthen training.warmup."
        )
    else:
        yield (
            f"{seen}, at learning rates from {min(rates):.3g} to {max(rates):.3g}, where other trials were stable: "
            "lower the learning rates, lengthen training.warmup or lower training.clip."
        )


def _short_of_memory(findings: Findings) -> Iterator[str]:
    ran_out = len(findings.of(Outcome.INFEASIBLE))
    refused = sum(one.verdict is not MemoryVerdict.INVALID for one in findings.refused)
    asked = len(findings.records) + refused
    if not asked or ran_out + refused < _MANY * asked:
        return
    limits = sorted({r.memory_limit_bytes for r in findings.records if r.memory_limit_bytes})
    limit = f" of {format_bytes(limits[-1])}" if limits else ""
    remedy = (
        f"remove the largest values of {MICRO_BATCH}, or set {MICRO_BATCH}: auto"
        if MICRO_BATCH in findings.sweep.search
        else f"set {MICRO_BATCH}: auto, or a smaller number"
    )
    checkpointing = (
        ""
        if findings.sweep.training.activation_checkpointing or findings.sweep.model.class_
        else ", or training.activation_checkpointing: true"
    )
    yield (
        f"{ran_out + refused} of {asked} trials and proposals do not fit in the memory{limit}: give more memory, "
        f"{remedy}{checkpointing}."
    )


def best_on_an_edge(findings: Findings) -> Iterator[str]:
    """A sentence for each setting whose optimum may lie outside the swept range."""
    best = findings.best
    if best is None:
        return
    itself = ", or set searcher.extend: true, and the sweep widens it itself"
    if findings.sweep.early_stopping.method == "full-length":
        itself = ""
    for path, beyond in best_on_edges(findings.sweep, findings.records).items():
        yield (
            f"The best trial has {path} {format_setting(best.settings[path])}, on the edge of the swept range "
            f"({findings.sweep.search[path]}): widen the range, to {format_setting(beyond)} for instance{itself}."
        )


def _ties(findings: Findings) -> Iterator[str]:
    if findings.best is None or len(findings.completed) < 2:
        return
    found = verdict(findings.records)
    if found is not None and found.noise is not None:
        if found.tied:
            names = ", ".join(group.records[0].name for group in found.tied)
            yield f"{names} {'ties' if len(found.tied) == 1 else 'tie'} with the best. {remedy(found)}"
        return
    best, second = (record.cost for record in findings.completed[:2])
    assert best is not None
    assert second is not None
    gap = second - best
    share = f" ({gap / abs(best):.2%})" if best else ""
    yield (
        f"The two best trials are {nats(gap, findings.metric.unit)}{share} apart. They may tie: no settings were "
        "repeated, so the noise is unknown. Set repeats: {trials: 4} to train the leading settings with other seeds."
    )


def _still_falling(findings: Findings) -> Iterator[str]:
    if findings.best is None:
        return
    curve = findings.curves[findings.best.number].holdout
    if len(curve.tokens) < 3:
        return
    before = curve.losses[curve.tokens <= 0.75 * curve.tokens[-1]]
    fall = float(before[-1] - curve.losses[-1]) if len(before) else 0.0
    if fall < _STILL_FALLING * curve.losses[-1]:
        return
    cooldown = " (part of it the cooldown of the schedule)" if findings.sweep.training.schedule == "wsd" else ""
    yield (
        f"The best trial's holdout loss fell by {fall:.4f} nats over the last quarter of its tokens{cooldown} and "
        "is still falling: a larger budget.tokens_per_trial would lower it further and may change the ranking."
    )


def _batch_against_noise(findings: Findings) -> Iterator[str]:
    if findings.best is None:
        return
    scale = findings.curves[findings.best.number].noise_scale_rows
    if scale is None:
        return
    batch = int(findings.setting(findings.best, "training.batch_size"))
    if batch > 4 * scale:
        yield (
            f"The best trial's batch of {batch} rows is {batch / scale:.1f} times its gradient noise scale of "
            f"{scale:.0f} rows: a smaller batch would reach a lower loss with the same tokens."
        )
    elif batch < scale / 4:
        yield (
            f"The best trial's batch of {batch} rows is far below its gradient noise scale of {scale:.0f} rows: a "
            "larger batch over more workers would train faster at little cost in tokens."
        )


def _waiting_for_data(findings: Findings) -> Iterator[str]:
    waiting = [record.name for record in findings.completed if _data_share(findings, record) > 0.2]
    if waiting:
        yield (
            f"{_trials(len(waiting))} spent more than a fifth of each step waiting for data ({waiting[0]} for one): "
            "the disk or the processor limits them, not the model."
        )


def _data_share(findings: Findings, record: TrialRecord) -> float:
    step_ms = findings.curves[record.number].step_ms
    total = sum(step_ms.values())
    return step_ms.get("data", 0.0) / total if total > 0 else 0.0


def _trials(count: int) -> str:
    return f"{count} trial{'s' if count != 1 else ''}"
