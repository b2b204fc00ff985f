"""The plan on the terminal and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.terminal_text import echo
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.early_stopping.rungs import proposer_in_words, rule_in_words
from sweeps.planning.disk_need import DiskNeed
from sweeps.planning.sweep_plan import SweepPlan
from sweeps.search.initial_points import informed_points
from sweeps.settings.search_space import format_setting
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep
from sweeps.settings.sweep_sections import StartConfig

_STYLES = {RemarkVerdict.FAIR: "green", RemarkVerdict.WARNING: "yellow", RemarkVerdict.REFUSED: "red"}


def print_plan(plan: SweepPlan, console: Console, disks: Sequence[DiskNeed] = ()) -> None:
    """Print the plan: resolved settings, trials, tokens, predicted memory, and the disk needed in each place."""
    sweep = plan.sweep
    console.print(Text("Settings", "bold"), ", every default written out", sep="")
    echo(dump_sweep(sweep), file=console.file)
    console.print("What will be done", style="bold")
    for label, text in (*_facts(plan), *_disk_facts(disks)):
        console.print(f"  {label:<14}{text}", highlight=False, soft_wrap=True)
    console.print()
    _print_comparisons(plan, console)
    console.print(Text("What fits", "bold"), f"in {format_bytes(plan.memory_bytes)} of one worker (predicted)")
    console.print(_memory_table(plan))


def plan_as_json(plan: SweepPlan, disks: Sequence[DiskNeed] = ()) -> dict[str, Any]:
    """The content of `print_plan` for scripts; memory and disk in bytes."""
    sweep = plan.sweep
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
        "memory_of_one_worker_bytes": plan.memory_bytes,
        "largest_micro_batch": plan.largest_micro_batch(sweep.run_config()),
        "partly_invalid": [asdict(one) | {"num_valid": one.num_valid} for one in sweep.partly_invalid()],
        "predicted_peak_memory_bytes": dict(_predicted_peaks(plan)),
        "disk": [
            {
                "place": str(need.place),
                "needed_bytes": need.needed_bytes,
                "free_bytes": need.free_bytes,
                "parts_bytes": need.parts,
            }
            for need in disks
        ],
    }


def _predicted_peaks(plan: SweepPlan) -> Iterator[tuple[int, int]]:
    """Micro-batches of the sweep, each with its predicted peak in bytes."""
    for micro_batch in _micro_batches(plan.sweep):
        run = plan.sweep.run_config({MICRO_BATCH: micro_batch, "training.batch_size": _large_batch(plan, micro_batch)})
        peak = plan.predicted_bytes(run)
        assert peak is not None
        yield micro_batch, peak


def _print_comparisons(plan: SweepPlan, console: Console) -> None:
    found = remarks(plan.sweep, rungs=plan.rungs)
    if not found:
        return
    console.print("Comparisons", style="bold")
    for remark in found:
        verdict = Text(f"  {remark.verdict:<14}", _STYLES[remark.verdict])
        console.print(verdict, str(remark), sep="", highlight=False, soft_wrap=True)
    console.print()


def _facts(plan: SweepPlan) -> Iterator[tuple[str, str]]:
    sweep = plan.sweep
    if sweep.start is not None:
        yield "starts from", _begins_with(sweep.start)
    if sweep.stages:
        # The tokens of an epoch are known only after preparation.
        yield "trials", f"one, in {len(sweep.stages)} stage{'s' if len(sweep.stages) > 1 else ''}"
        for number, (stage, run) in enumerate(zip(sweep.stages, sweep.stage_runs(), strict=True), start=1):
            length = f"{stage.tokens:,} tokens" if stage.tokens is not None else f"{stage.epochs:g} epochs"
            yield f"stage {number}", f"{length}, rows of {run.model.sequence_length}, batch {run.training.batch_size}"
    else:
        yield from _budget_facts(sweep)
    for path, distribution in sweep.search.items():
        yield "swept", f"{path}: {distribution}"
    for combinations in sweep.partly_invalid():
        first, *others = combinations.in_words()
        yield from [("combinations", first), *(("", words) for words in others)]
    for settings in sweep.start_with:
        yield "first", _in_words(settings)
    points = informed_points(sweep)
    for point in points:
        yield "informed", _in_words(point.settings)
    # Later points differ from the first only in the settings that depend on the batch size.
    for reason in points[0].reasons if points else ():
        yield "", reason
    yield "proposed by", proposer_in_words(sweep)
    yield "stopped by", rule_in_words(sweep.early_stopping, plan.rungs)
    yield (
        "compared by",
        "holdout loss in nats per token, on the same holdout for every trial"
        + (" under the same masks at 15 %" if sweep.objective.masked_lm else ""),
    )
    repeats = sweep.num_repeats
    if repeats:
        leaders = f"the best {sweep.repeats.leaders} settings"
        yield "repeated", f"{leaders} with other seeds, until no longer tied, in at most {repeats} more trials"
    yield "side by side", plan.lanes.reason


def _disk_facts(disks: Sequence[DiskNeed]) -> Iterator[tuple[str, str]]:
    for need in disks:
        yield "disk", str(need)


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


def _in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{path} {format_setting(value)}" for path, value in settings.items())


def _memory_table(plan: SweepPlan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("micro-batch", "peak", "of the limit", ""):
        table.add_column(name, justify="right" if name else "left")
    largest = plan.largest_micro_batch(plan.sweep.run_config())
    for micro_batch, peak in _predicted_peaks(plan):
        verdict = "fits" if peak <= plan.memory_bytes else "does not fit: not launched"
        table.add_row(str(micro_batch), format_bytes(peak), f"{peak / plan.memory_bytes:.0%}", verdict)
    table.add_row(
        "largest", "", "", f"{largest} rows at the settings of the file" if largest else "not even one row fits"
    )
    return table


def _micro_batches(sweep: SweepConfig) -> list[int]:
    swept = sweep.search.get(MICRO_BATCH)
    listed = [settings[MICRO_BATCH] for settings in sweep.start_with if MICRO_BATCH in settings]
    values = [*(swept.extremes() if swept else (sweep.training.micro_batch_size,)), *listed]
    return sorted({value for value in values if isinstance(value, int)})


def _large_batch(plan: SweepPlan, micro_batch: int) -> int:
    # Two micro-batches per step: accumulation, which most trials use, adds a copy of the gradients.
    return 2 * micro_batch * plan.lanes.workers
