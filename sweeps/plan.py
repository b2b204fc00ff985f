"""What a sweep will do, before it does it: lanes, rungs, tokens, and what fits in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.host_memory import memory_share_bytes
from core.memory_model import Place, how_to_fit, largest_micro_batch, predict_memory
from core.run_config import RunConfig
from data_pipeline.settings import format_bytes
from sweeps.cluster import AutoLanes, LanePlan, ResourcesError, plan_lanes, worker_memory_bytes
from sweeps.early_stopping import rule_in_words, rung_tokens
from sweeps.fairness import remarks
from sweeps.informed_start import informed_points
from sweeps.memory_frontier import MICRO_BATCH, MemoryFrontier, micro_batch_of
from sweeps.promotion import Promotions
from sweeps.search_space import format_setting
from sweeps.sweep_config import BudgetConfig, StartConfig, SweepConfig
from sweeps.sweep_file import dump_sweep

FIRST_MARGIN_ON_CUDA = 0.10
"""Share of its prediction that a run must leave free on a GPU until a trial has shown that it need not."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with everything decided that depends on the machine."""

    sweep: SweepConfig
    vocabulary_size: int
    lanes: LanePlan
    memory_bytes: int
    """Memory of one worker."""

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Token counts at which trials are compared."""
        return rung_tokens(self.sweep.early_stopping, self.sweep.budget.tokens_per_trial)

    @cached_property
    def promotions(self) -> Promotions | None:
        """Who goes on after a pause at a rung; None where trials do not pause."""
        stopping, num_trials = self.sweep.early_stopping, self.sweep.budget.trials
        is_theirs = stopping.method == "trunk-and-branch"
        return Promotions(self.rungs, stopping.reduction_factor, num_trials) if is_theirs else None

    @cached_property
    def evaluate_at_tokens(self) -> tuple[int, ...]:
        """Token counts at which the holdout is evaluated: points spread evenly, and every rung that stops."""
        total, points = self.sweep.budget.tokens_per_trial, self.sweep.evaluation.points
        even = {round(total * point / points) for point in range(1, points)}
        # A rung of trunk-and-branch is evaluated by its branch.
        return tuple(sorted(even if self.promotions else even | set(self.rungs)))

    def predicted_bytes(self, run: RunConfig) -> int | None:
        """Predicted peak of one worker; None where the micro-batch is `auto`, which fits itself to the memory."""
        return None if run.training.micro_batch_size == "auto" else self._predict(run)

    def _predict(self, run: RunConfig) -> int:
        micro_batch = micro_batch_of(run, self.lanes.workers)
        assert micro_batch is not None, "an automatic size is made a number first"
        return predict_memory(run, self.vocabulary_size, micro_batch_size=micro_batch, place=self.place).peak_bytes

    def largest_micro_batch(self, run: RunConfig, memory_bytes: int | None = None) -> int:
        """The most rows that one worker can hold at once, at most its rows of a batch; 0 when not even one fits.

        Args:
            memory_bytes: None: the worker's memory.
        """
        memory = self.memory_bytes if memory_bytes is None else memory_bytes
        return largest_micro_batch(run, self.vocabulary_size, memory_bytes=memory, place=self.place)

    def how_to_fit(self, run: RunConfig) -> str:
        """In words: what a run needs of the memory, and what to change if that is too much."""
        return how_to_fit(run, self.vocabulary_size, memory_bytes=self.memory_bytes, place=self.place)

    @property
    def place(self) -> Place:
        """Where its trials take place."""
        return place_of_trials(self.sweep, self.lanes)

    def frontier(self, *, rows_filled: int = 100, source: str = "") -> MemoryFrontier:
        """A frontier for this machine that knows nothing yet but the prediction.

        Args:
            rows_filled: Share of the corpus's rows that holds tokens, in percent.
            source: Folder of the sweep.
        """
        place = ", ".join(f"{name} {value}" for name, value in asdict(self.place).items())
        return MemoryFrontier(
            limit_bytes=self.memory_bytes,
            num_workers=self.lanes.workers,
            predict=self._predict,
            surroundings=f"vocabulary {self.vocabulary_size}, {place}",
            rows_filled=rows_filled,
            # Counted as predicted on a CPU; on CUDA what is predicted of the allocator has not been measured.
            first_margin=FIRST_MARGIN_ON_CUDA if self.lanes.use_gpu else 0.0,
            source=source,
        )


def place_of_trials(sweep: SweepConfig, lanes: LanePlan) -> Place:
    """Where a sweep's trials take place on such lanes."""
    return Place(
        num_workers=lanes.workers,
        device_type="cuda" if lanes.use_gpu else "cpu",
        has_document_ids=sweep.packing.confines_attention,
    )


def plan_sweep(
    sweep: SweepConfig,
    *,
    vocabulary_size: int,
    auto: AutoLanes | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    nodes: Sequence[Mapping[str, float]] = (),
) -> SweepPlan:
    """Decide what depends on the machine.

    Args:
        auto: What `concurrent_trials: auto` comes to on one machine. None: as many lanes as there are cores or GPUs.
        num_cpus: Processor cores of the cluster. None: of this machine; likewise `num_gpus`.
        nodes: Of each node of the cluster its cores (`CPU`) and GPUs (`GPU`).

    Raises:
        ResourcesError: Not even one trial fits.
    """
    lanes = plan_lanes(
        sweep.resources,
        num_trials=sweep.budget.trials,
        auto=auto,
        num_cpus=num_cpus or os.cpu_count() or 1,
        num_gpus=torch.cuda.device_count() if num_gpus is None else num_gpus,
        nodes=nodes,
    )
    # All GPUs of a sweep are taken to be like the first: Ray does not say how much memory each has.
    is_here = lanes.use_gpu and torch.cuda.is_available()
    device_bytes = memory_share_bytes(torch.device("cuda", 0)) if is_here else None
    memory_bytes = worker_memory_bytes(sweep.resources, lanes, device_bytes=device_bytes)
    plan = SweepPlan(sweep, vocabulary_size, lanes, memory_bytes)
    if lanes.gpus_per_worker < 1:
        _check_share(plan)
    return plan


def _check_share(plan: SweepPlan) -> None:
    """See that the file's own settings fit in a lane's share of a GPU, as predicted.

    Raises:
        ResourcesError: They do not.
    """
    run = plan.sweep.run_config()
    if plan.largest_micro_batch(run) < (micro_batch_of(run, plan.lanes.workers) or 1):
        raise ResourcesError(
            f"resources.concurrent_trials={plan.lanes.count} gives each trial {plan.lanes.gpus_per_worker:.2g} of a "
            f"GPU, which is {format_bytes(plan.memory_bytes)}: {plan.how_to_fit(run)}. Or use fewer concurrent_trials."
        )


def print_plan(plan: SweepPlan, console: Console) -> None:
    """Show the plan: resolved settings, trials, tokens, what fits."""
    sweep = plan.sweep
    console.print("[bold]Settings[/bold], every default written out")
    console.print(escape(dump_sweep(sweep)), highlight=False)
    console.print("[bold]What will be done[/bold]")
    for label, text in _facts(plan):
        console.print(f"  {label:<14}{escape(text)}", highlight=False, soft_wrap=True)
    console.print()
    _print_comparisons(plan, console)
    console.print(f"[bold]What fits[/bold] in {format_bytes(plan.memory_bytes)} of one worker (predicted)")
    console.print(_memory_table(plan))


def plan_as_json(plan: SweepPlan) -> dict[str, Any]:
    """What `print_plan` shows, for a script; memory in bytes."""
    sweep = plan.sweep
    return {
        "sweep": sweep.model_dump(mode="json"),
        "rungs_tokens": list(plan.rungs),
        "evaluate_at_tokens": list(plan.evaluate_at_tokens),
        "max_tokens": sweep.budget.trials * sweep.budget.tokens_per_trial,
        "concurrent_trials": plan.lanes.count,
        "workers_per_trial": plan.lanes.workers,
        "threads_per_worker": plan.lanes.threads_per_worker,
        "uses_gpu": plan.lanes.use_gpu,
        "memory_of_one_worker_bytes": plan.memory_bytes,
        "largest_micro_batch": plan.largest_micro_batch(sweep.run_config()),
        "predicted_peak_memory_bytes": dict(_predicted_peaks(plan)),
    }


def _predicted_peaks(plan: SweepPlan) -> Iterator[tuple[int, int]]:
    """Micro-batches of the sweep, each with what it needs in bytes."""
    for micro_batch in _micro_batches(plan.sweep):
        run = plan.sweep.run_config({MICRO_BATCH: micro_batch, "training.batch_size": _large_batch(plan, micro_batch)})
        peak = plan.predicted_bytes(run)
        assert peak is not None
        yield micro_batch, peak


def _print_comparisons(plan: SweepPlan, console: Console) -> None:
    found = remarks(plan.sweep, rungs=plan.rungs)
    if not found:
        return
    console.print("[bold]Comparisons[/bold]")
    for remark in found:
        style = {"fair": "green", "warning": "yellow", "refused": "red"}[remark.verdict]
        console.print(
            f"  [{style}]{remark.verdict:<14}[/{style}]{escape(str(remark))}", highlight=False, soft_wrap=True
        )
    console.print()


def _facts(plan: SweepPlan) -> Iterator[tuple[str, str]]:
    sweep, budget = plan.sweep, plan.sweep.budget
    if sweep.start is not None:
        yield "begins with", _begins_with(sweep.start)
    if sweep.stages:
        # How many tokens epochs are, only the prepared corpus says.
        yield "trials", f"one, in {len(sweep.stages)} stage{'s' if len(sweep.stages) > 1 else ''}"
        for number, (stage, run) in enumerate(zip(sweep.stages, sweep.stage_runs(), strict=True), start=1):
            length = f"{stage.tokens:,} tokens" if stage.tokens is not None else f"{stage.epochs:g} epochs"
            yield f"stage {number}", f"{length}, rows of {run.model.sequence_length}, batch {run.training.batch_size}"
    else:
        yield from _budget_facts(budget)
    for path, distribution in sweep.search.items():
        yield "swept", f"{path}: {distribution}"
    for settings in sweep.start_with:
        yield "first", _in_words(settings)
    points = informed_points(sweep)
    for point in points:
        yield "informed", _in_words(point.settings)
    # A point besides the first differs only in what goes with its batch size.
    for reason in points[0].reasons if points else ():
        yield "", reason
    yield "proposed by", f"{sweep.searcher.method}, seed {sweep.searcher.seed}"
    yield "stopped by", rule_in_words(sweep.early_stopping, plan.rungs)
    yield (
        "compared by",
        "holdout loss in nats per token, on the same holdout for every trial"
        + (" under the same masks at 15 %" if sweep.objective.masked_lm else ""),
    )
    repeats = sweep.repeats.count(budget.trials)
    if repeats:
        leaders = f"the best {sweep.repeats.leaders} settings"
        yield "repeated", f"{leaders} with other seeds, until they can be told apart, in {repeats} more trials at most"
    yield "side by side", plan.lanes.reason


def _begins_with(start: StartConfig) -> str:
    """What a file takes over, which `train` and `sweep` find among the results."""
    parts = {"the settings that won in": start.settings_of, "the model of": start.weights_of, "": start.trunk_of}
    named = [f"{what} {name}".strip() for what, name in parts.items() if name is not None]
    return "; ".join((*named, *start.notes))


def _budget_facts(budget: BudgetConfig) -> Iterator[tuple[str, str]]:
    total = budget.trials * budget.tokens_per_trial
    yield "trials", f"{budget.trials} of up to {budget.tokens_per_trial:,} tokens: {total:,} at most"
    if budget.shorten_to is not None:
        yield "shortened to", f"{budget.shorten_to} of training; the sweep first measures how fast this machine is"
    if budget.tokens is not None:
        yield "ends at", f"{budget.tokens:,} tokens of all trials; none starts that could exceed them"
    if budget.flops is not None:
        yield "ends at", f"{budget.flops:.3g} operations of all trials; none starts that could exceed them"
    if budget.wall_clock is not None:
        yield "ends after", f"{budget.wall_clock}; trials in flight are then stopped at their next report"


def _in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{path} {format_setting(value)}" for path, value in settings.items())


def _memory_table(plan: SweepPlan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("micro-batch", "peak", "of the limit", ""):
        table.add_column(name, justify="right" if name else "left")
    largest = plan.largest_micro_batch(plan.sweep.run_config())
    for micro_batch, peak in _predicted_peaks(plan):
        verdict = "fits" if peak <= plan.memory_bytes else "[yellow]does not fit: not launched[/yellow]"
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
    # With accumulation, as most trials have it, a copy of the gradients comes on top.
    return 2 * micro_batch * plan.lanes.workers
