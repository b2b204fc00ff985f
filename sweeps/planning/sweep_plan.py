"""What a sweep will do, before it does it: lanes, rungs, tokens, and what fits in memory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from core.memory.host_memory import memory_share_bytes
from core.memory_prediction.peak_memory import WorkerSetup, how_to_fit, largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import format_bytes
from sweeps.early_stopping.promotion import Promotions
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.lanes.lane_planning import AutoLanes, LanePlan, ResourcesError, plan_lanes, worker_memory_bytes
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, micro_batch_of
from sweeps.settings.sweep_config import SweepConfig

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
        return rung_tokens(self.sweep.early_stopping, self.sweep.budget.trial_tokens)

    @cached_property
    def promotions(self) -> Promotions | None:
        """Which trials are promoted at a rung; None where trials do not pause."""
        stopping, num_trials = self.sweep.early_stopping, self.sweep.budget.trials
        is_theirs = stopping.method == "trunk-and-branch"
        return Promotions(self.rungs, stopping.reduction_factor, num_trials) if is_theirs else None

    @cached_property
    def evaluate_at_tokens(self) -> tuple[int, ...]:
        """Token counts at which the holdout is evaluated: points spread evenly, and every rung that stops."""
        total, points = self.sweep.budget.trial_tokens, self.sweep.evaluation.points
        even = {round(total * point / points) for point in range(1, points)}
        # A rung of trunk-and-branch is evaluated by its branch.
        return tuple(sorted(even if self.promotions else even | set(self.rungs)))

    def predicted_bytes(self, run: RunConfig) -> int | None:
        """Predicted peak of one worker; None where the micro-batch is `auto`, which fits itself to the memory."""
        return None if run.training.micro_batch_size == "auto" else self._predict(run)

    def _predict(self, run: RunConfig) -> int:
        micro_batch = micro_batch_of(run, self.lanes.workers)
        assert micro_batch is not None, "an automatic size is made a number first"
        return predict_memory(run, self.vocabulary_size, micro_batch_size=micro_batch, setup=self.place).peak_bytes

    def largest_micro_batch(self, run: RunConfig, memory_bytes: int | None = None) -> int:
        """The most rows that one worker can hold at once, at most its rows of a batch; 0 when not even one fits.

        Args:
            memory_bytes: None: the worker's memory.
        """
        memory = self.memory_bytes if memory_bytes is None else memory_bytes
        return largest_micro_batch(run, self.vocabulary_size, memory_bytes=memory, setup=self.place)

    def how_to_fit(self, run: RunConfig) -> str:
        """In words: what a run needs of the memory, and what to change if that is too much."""
        return how_to_fit(run, self.vocabulary_size, memory_bytes=self.memory_bytes, setup=self.place)

    @property
    def place(self) -> WorkerSetup:
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


def place_of_trials(sweep: SweepConfig, lanes: LanePlan) -> WorkerSetup:
    """Where a sweep's trials take place on such lanes."""
    return WorkerSetup(
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
