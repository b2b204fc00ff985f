"""Everything that the plan of a sweep says, gathered once for the terminal and for scripts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.preparation.prepare import folder_if_prepared
from data_pipeline.tokens.token_blocks import open_prepared
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.analysis.yardsticks import Yardsticks
from sweeps.horizon.expected_optimum import ranges_that_leave_it_out
from sweeps.lanes.lane_planning import this_machine
from sweeps.planning.auto_lanes import auto_lanes
from sweeps.planning.disk_need import DiskNeed, NoDiskError, check_disk, disk_needs
from sweeps.planning.expected_time import TimeRange, expected_time
from sweeps.planning.first_checks import check_device
from sweeps.planning.preparation import corpus_bytes
from sweeps.planning.resolved_sweep import ExpectedSweep
from sweeps.planning.speed_probe import known_speed, measured_speed
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep
from sweeps.planning.table_yardsticks import measured_yardsticks
from sweeps.records.results_folder import ended_sweeps
from sweeps.records.trial_records import LOSS_COLUMN
from sweeps.search.class_check import class_fault
from sweeps.search.prior_trials import PriorKnowledge, prior_knowledge
from sweeps.search_space.distribution import format_setting, short_name
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig
from sweeps.tasks.labelled_tasks import TaskTexts, read_tasks

_SHAPES = ("model.", "training.lora.")
_MOST_MODELS = 6
"""Models in the table of memory; each micro-batch of a new model costs a trace of about a second."""


@dataclass(frozen=True)
class EarlierLoss:
    """The best loss of an earlier sweep of the same name, model and corpus."""

    nats: float
    """Holdout loss in nats per token."""
    tokens: int
    sweep: str
    """Folder name of the sweep."""


@dataclass(frozen=True)
class ModelMemory:
    """Predicted memory of one model of the search space."""

    settings: dict[str, Any]
    """Its swept settings; empty if none of them is swept."""
    peaks: dict[int, int]
    """Bytes of one worker at each micro-batch of the sweep."""
    largest: int
    """The largest micro-batch that fits; 0 if not even one row does."""

    @property
    def name(self) -> str:
        """Its swept settings in words."""
        return ", ".join(f"{short_name(path)} {format_setting(value)}" for path, value in self.settings.items())


@dataclass(frozen=True)
class PlanFacts:
    """A plan with what is known beside it."""

    plan: SweepPlan
    disks: Sequence[DiskNeed] = ()
    time: TimeRange | None = None
    """None: the speed is not known and was not measured."""
    yardsticks: Yardsticks | None = None
    """None: the corpus is not prepared yet."""
    earlier: EarlierLoss | None = None
    """None: the results folder has no such sweep."""
    tasks: Sequence[TaskTexts] = ()
    """Labelled rows of the downstream tasks."""
    prior: PriorKnowledge | None = None
    """Trials of the sweeps under `search_from`; None: there are none."""

    @property
    def price(self) -> tuple[float, float] | None:
        """Lowest and highest price of the sweep; None without a price or a time."""
        per_hour = self.plan.sweep.resources.price_per_hour
        return None if per_hour is None or self.time is None else self.time.price(per_hour)

    @cached_property
    def memory(self) -> tuple[ModelMemory, ...]:
        """The models of the search space with their predicted memory, a few of many."""
        return tuple(
            _memory_of(self.plan, settings) for settings in _models(self.plan.sweep, self.plan.vocabulary_size)
        )

    def warnings(self) -> Iterator[str]:
        """What speaks against the sweep as it is, each with its remedy."""
        sweep = self.plan.sweep
        for remark in remarks(sweep, rungs=self.plan.rungs):
            if remark.verdict is not RemarkVerdict.FAIR:
                yield str(remark)
        yield from ranges_that_leave_it_out(sweep)
        for model in self.memory:
            if not model.largest:
                how = self.plan.how_to_fit(sweep.run_config(model.settings))
                yield f"{model.name or 'the model'} does not fit: {how}."
        try:
            yield from check_disk(self.disks)
        except NoDiskError as fault:
            yield str(fault)


def gather_facts(asked: SweepConfig, results_folder: Path, *, may_measure: bool) -> PlanFacts:
    """Everything that is known of a sweep before it starts.

    Args:
        may_measure: Measure the speed of this machine for some seconds, where no earlier trial tells it.

    Raises:
        InputFault: A fault that trials would meet.
    """
    expected = ExpectedSweep(asked, results_folder)
    check_device(expected.begun, num_gpus=this_machine()["num_gpus"])
    tasks = read_tasks(asked.evaluation.tasks)
    vocabulary_size = expected.vocabulary_size
    sweep, _ = expected.whole(cluster=this_machine if may_measure else None)
    auto = auto_lanes(
        sweep,
        cluster=this_machine(),
        vocabulary_size=vocabulary_size,
        results_folder=results_folder,
        may_measure=may_measure,
    )
    plan = plan_sweep(sweep, vocabulary_size=vocabulary_size, auto=auto)
    speed = known_speed(sweep, plan.lanes, vocabulary_size=vocabulary_size, results_folder=results_folder)
    if speed is None and may_measure:
        speed = measured_speed(sweep, plan.lanes, vocabulary_size=vocabulary_size, results_folder=results_folder)
    there = folder_if_prepared(
        sweep.corpus, sweep.tokenizer, sweep.packing, prepared_folder=results_folder / "prepared"
    )
    data = None if there is None else open_prepared(there)
    fingerprint = None if data is None else data.fingerprint
    return PlanFacts(
        plan,
        disk_needs(plan, results_folder, corpus_bytes=corpus_bytes(sweep) if data is None else 0),
        time=None if speed is None else expected_time(plan, speed),
        yardsticks=None if data is None else measured_yardsticks(sweep, data),
        earlier=None if data is None else earlier_loss(sweep, results_folder, fingerprint=data.fingerprint),
        tasks=tasks,
        prior=prior_knowledge(sweep, results_folder, data_fingerprint=fingerprint),
    )


def earlier_loss(sweep: SweepConfig, results_folder: Path, *, fingerprint: str) -> EarlierLoss | None:
    """The best loss of the newest sweep of this name on the same prepared corpus."""
    for folder, summary in ended_sweeps(results_folder, sweep.name):
        best = summary.get("best")
        data = summary.get("data")
        if not isinstance(best, dict) or not isinstance(data, dict) or data.get("fingerprint") != fingerprint:
            continue
        nats, tokens = best.get(LOSS_COLUMN), best.get("tokens")
        if isinstance(nats, float) and isinstance(tokens, int):
            return EarlierLoss(nats, tokens, folder.name)
    return None


def micro_batches(sweep: SweepConfig) -> list[int]:
    """The micro-batches that the file names, smallest first; empty for `auto`."""
    swept = sweep.search.get(MICRO_BATCH)
    listed = [settings[MICRO_BATCH] for settings in sweep.start_with if MICRO_BATCH in settings]
    values = [*(swept.extremes() if swept else (sweep.training.micro_batch_size,)), *listed]
    return sorted({value for value in values if isinstance(value, int)})


def _models(sweep: SweepConfig, vocabulary_size: int) -> list[dict[str, Any]]:
    """Settings of the models of the search space; one empty set if no setting of the model is swept."""
    swept = {path: one.extremes() for path, one in sweep.search.items() if path.startswith(_SHAPES)}
    combinations = (dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values()))
    valid = (
        settings
        for settings in combinations
        if sweep.fault_of(settings) is None and class_fault(sweep.run_config(settings), vocabulary_size) is None
    )
    return list(itertools.islice(valid, _MOST_MODELS)) or [{}]


def _memory_of(plan: SweepPlan, settings: dict[str, Any]) -> ModelMemory:
    sweep, peaks = plan.sweep, {}
    for micro_batch in micro_batches(sweep):
        # Two micro-batches per step: accumulation, which most trials use, adds a copy of the gradients.
        batch = 2 * micro_batch * plan.lanes.workers
        peak = plan.predicted_bytes(
            sweep.run_config(settings | {MICRO_BATCH: micro_batch, "training.batch_size": batch})
        )
        assert peak is not None
        peaks[micro_batch] = peak
    largest = plan.largest_micro_batch(sweep.run_config(settings))
    return ModelMemory(settings, peaks, largest)
