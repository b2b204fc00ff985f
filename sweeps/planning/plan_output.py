"""The plan on one screen of a terminal, and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.terminal_text import echo
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.early_stopping.rungs import proposer_in_words, rule_in_words
from sweeps.planning.plan_facts import ModelMemory, PlanFacts
from sweeps.search.initial_points import informed_points
from sweeps.search_space.distribution import format_setting
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep
from sweeps.settings.sweep_sections import StartConfig
from sweeps.tasks.labelled_tasks import TaskTexts, figures_of


def print_plan(facts: PlanFacts, console: Console, *, everything: bool = False) -> None:
    """Print the plan.

    Args:
        everything: Also the first points, the comparisons that hold, and all settings with their defaults.
    """

    def say(label: str, words: str, style: str = "bold") -> None:
        console.print(Text(f"{label:<13}", style), words, sep="", highlight=False, soft_wrap=True)

    for label, words in (*_search_facts(facts), *_cost_facts(facts)):
        say(label, words)
    memory = format_bytes(facts.plan.memory_bytes)
    console.print(Text("What fits", "bold"), f"in {memory} of one worker (predicted)", highlight=False)
    if any(model.peaks for model in facts.memory):
        console.print(_memory_table(facts))
    for model in facts.memory:
        say("", _largest_in_words(model))
    for label, words in _loss_facts(facts):
        say(label, words)
    for warning in facts.warnings():
        say("warning", warning, "yellow")
    if not everything:
        return
    console.print()
    for label, words in _further_facts(facts):
        say(label, words)
    console.print(Text("Settings", "bold"), ", every default written out", sep="")
    echo(dump_sweep(facts.plan.sweep), file=console.file)


def plan_as_json(facts: PlanFacts) -> dict[str, Any]:
    """The content of `print_plan` for scripts; memory and disk in bytes, time in seconds, losses in nats per token."""
    plan, sweep, time = facts.plan, facts.plan.sweep, facts.time
    return {
        "sweep": sweep.model_dump(mode="json"),
        "rungs_tokens": list(plan.rungs),
        "evaluate_at_tokens": list(plan.evaluate_at_tokens),
        "max_trials": sweep.num_trials,
        "max_tokens": sweep.max_tokens,
        "concurrent_trials": plan.lanes.count,
        "workers_per_trial": plan.lanes.workers,
        "threads_per_worker": plan.lanes.threads_per_worker,
        "uses_gpu": plan.lanes.use_gpu,
        "time_s": None if time is None else [time.low_s, time.high_s],
        "speed": None if time is None else asdict(time.speed),
        "price": None if facts.price is None else list(facts.price),
        "memory_of_one_worker_bytes": plan.memory_bytes,
        "largest_micro_batch": plan.largest_micro_batch(sweep.run_config()),
        "search_from": [] if facts.prior is None else [one.in_words for one in facts.prior.earlier],
        "partly_invalid": [asdict(one) | {"num_valid": one.num_valid} for one in sweep.partly_invalid()],
        "predicted_peak_memory_bytes": facts.memory[0].peaks,
        "memory": [asdict(model) for model in facts.memory],
        "yardsticks": None if facts.yardsticks is None else facts.yardsticks.model_dump(),
        "earlier_loss": None if facts.earlier is None else asdict(facts.earlier),
        "tasks": figures_of(facts.tasks),
        "warnings": list(facts.warnings()),
        "disk": [
            {
                "place": str(need.place),
                "needed_bytes": need.needed_bytes,
                "free_bytes": need.free_bytes,
                "parts_bytes": need.parts,
            }
            for need in facts.disks
        ],
    }


def _search_facts(facts: PlanFacts) -> Iterator[tuple[str, str]]:
    plan, sweep = facts.plan, facts.plan.sweep
    if sweep.start is not None:
        yield "starts from", _begins_with(sweep.start)
    for label, (path, distribution) in zip(_first("searched"), sweep.search.items(), strict=False):
        yield label, f"{path}: {distribution}"
    if facts.prior is not None:
        yield from zip(_first("search from"), (one.in_words for one in facts.prior.earlier), strict=False)
    for combinations in sweep.partly_invalid():
        yield from zip(_first("combinations"), combinations.in_words(), strict=False)
    if sweep.stages:
        # The tokens of an epoch are known only after preparation.
        yield "trials", f"one, in {len(sweep.stages)} stage{'s' if len(sweep.stages) > 1 else ''}"
        for number, (stage, run) in enumerate(zip(sweep.stages, sweep.stage_runs(), strict=True), start=1):
            length = f"{stage.tokens:,} tokens" if stage.tokens is not None else f"{stage.epochs:g} epochs"
            yield f"stage {number}", f"{length}, rows of {run.model.sequence_length}, batch {run.training.batch_size}"
    else:
        yield from _budget_facts(sweep)
    listed = len(sweep.start_with)
    if listed:
        yield "first", f"the {listed} settings of start_with" if listed > 1 else "the settings of start_with"
    repeats = sweep.num_repeats
    if repeats:
        leaders = f"the best {sweep.repeats.leaders} settings"
        yield "repeated", f"{leaders} with other seeds, until no longer tied, in at most {repeats} more trials"
    for label, task in zip(_first("tasks"), facts.tasks, strict=False):
        yield label, f"{task.in_words()}. {_probes_in_words(facts, task)}"
    yield "side by side", plan.lanes.reason


def _probes_in_words(facts: PlanFacts, task: TaskTexts) -> str:
    """When the linear probes of a task are fitted, and the forward passes that they take."""
    sweep = facts.plan.sweep
    at = "the end of each trial"
    if sweep.early_stopping.has_branches:
        at += " and of each branch"
    elif facts.plan.judge_at_tokens:
        at += f" and at {len(facts.plan.judge_at_tokens)} rungs"
    tokens = len(task.texts) * min(task.config.max_tokens or sweep.model.sequence_length, sweep.model.num_positions)
    return f"A linear probe is fitted at {at}, from forward passes of at most {tokens:,} tokens"


def _cost_facts(facts: PlanFacts) -> Iterator[tuple[str, str]]:
    yield (
        "time",
        "not known; without --no-measure some seconds of measuring tell" if facts.time is None else str(facts.time),
    )
    per_hour = facts.plan.sweep.resources.price_per_hour
    if facts.price is not None:
        yield "price", f"{facts.price[0]:,.2f} to {facts.price[1]:,.2f}, at {per_hour:,g} an hour"
    for need in facts.disks:
        free = "" if need.free_bytes is None else f"; {format_bytes(need.free_bytes)} are free"
        yield "disk", f"about {format_bytes(need.needed_bytes)} in {need.place}{free}"


def _memory_table(facts: PlanFacts) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    has_names = any(model.name for model in facts.memory)
    for name in (*(["model"] if has_names else []), "micro-batch", "peak", "of the limit", ""):
        table.add_column(name, justify="left" if name in ("model", "") else "right")
    limit = facts.plan.memory_bytes
    for model in facts.memory:
        for micro_batch, peak in model.peaks.items():
            verdict = "fits" if peak <= limit else "does not fit: not launched"
            row = (str(micro_batch), format_bytes(peak), f"{peak / limit:.0%}", verdict)
            table.add_row(*([model.name] if has_names else []), *row)
    return table


def _largest_in_words(model: ModelMemory) -> str:
    of = f" of {model.name}" if model.name else " at the settings of the file"
    return f"at most {model.largest} rows{of}" if model.largest else f"not even one row fits{of}"


def _loss_facts(facts: PlanFacts) -> Iterator[tuple[str, str]]:
    if facts.yardsticks is not None:
        yield "tables", f"{facts.yardsticks.in_words()}: a model must be below"
    else:
        yield "tables", "losses of token tables are known once `pretune prepare` has prepared the corpus"
    if facts.earlier is not None:
        earlier = facts.earlier
        yield "expected", f"loss {earlier.nats:.4f}, as {earlier.sweep} reached with {earlier.tokens:,} tokens a trial"


def _further_facts(facts: PlanFacts) -> Iterator[tuple[str, str]]:
    sweep = facts.plan.sweep
    for settings in sweep.start_with:
        yield "first", _in_words(settings)
    points = informed_points(sweep)
    for point in points:
        yield "informed", _in_words(point.settings)
    # Later points differ from the first only in the settings that depend on the batch size.
    for reason in points[0].reasons if points else ():
        yield "", reason
    yield "proposed by", proposer_in_words(sweep)
    yield "stopped by", rule_in_words(sweep.early_stopping, facts.plan.rungs)
    metric = sweep.ranked_by
    if not metric.is_loss:
        best = "highest" if metric.mode == "max" else "lowest"
        yield "ranked by", f"{metric.name}; the {best} is best, and rungs compare holdout losses"
    yield (
        "compared by",
        "holdout loss in nats per token, on the same holdout for every trial"
        + (" under the same masks at 15 %" if sweep.objective.masked_lm else ""),
    )
    for need in facts.disks:
        yield "disk", str(need)
    for remark in remarks(sweep, rungs=facts.plan.rungs):
        if remark.verdict is RemarkVerdict.FAIR:
            yield "fair", str(remark)


def _begins_with(start: StartConfig) -> str:
    """The earlier results that a file starts from; `train` and `sweep` look them up in the results folder."""
    parts = {"the best settings of": start.settings_of, "the model of": start.weights_of, "": start.trunk_of}
    named = [f"{what} {name}".strip() for what, name in parts.items() if name is not None]
    return "; ".join((*named, *start.notes))


def _budget_facts(sweep: SweepConfig) -> Iterator[tuple[str, str]]:
    budget, num_trials = sweep.budget, sweep.num_trials
    if sweep.early_stopping.method == "full-length":
        in_full = f"{sweep.early_stopping.num_in_full} trainings in full of {budget.trial_tokens:,}"
        yield "trials", f"probes of {sweep.probe_tokens:,} tokens in all, {in_full}: {sweep.max_tokens:,} at most"
        yield "probes", "at learning rates and batch sizes scaled down to the length of each"
    else:
        yield "trials", f"{num_trials} of up to {budget.trial_tokens:,} tokens: {sweep.max_tokens:,} at most"
    if num_trials < budget.trials:
        yield "", f"budget.trials is {budget.trials}, and the search space has no more settings"
    if budget.shorten_to is not None:
        yield "shortened to", f"{budget.shorten_to} of training; the sweep first measures the speed of this machine"
    if budget.tokens is not None:
        yield "ends at", f"{budget.tokens:,} tokens of all trials; no trial starts that could exceed them"
    if budget.flops is not None:
        yield "ends at", f"{budget.flops:.3g} operations of all trials; no trial starts that could exceed them"
    if budget.wall_clock is not None:
        yield "ends after", f"{budget.wall_clock}; running trials then stop at their next report"


def _first(label: str) -> Iterator[str]:
    """The label once, then nothing."""
    yield label
    while True:
        yield ""


def _in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{path} {format_setting(value)}" for path, value in settings.items())
