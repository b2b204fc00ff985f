"""What `concurrent_trials: auto` comes to: the lanes that train the most tokens a second together, as measured.

Few lanes with many threads or many with few: which is faster depends on the model and the machine, so it is measured
once for both, in some seconds, and kept in `results/memory/`. Where lanes come to the same, the fewest: each trial ends
sooner, the search learns more from it, and fewer lanes take less memory and start sooner.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.costs.lane_benchmark import Way, measure_side_by_side
from core.costs.training_flops import training_flops_a_token
from core.memory.host_memory import host_memory_share
from core.memory_prediction.automatic_micro_batch import automatic_micro_batch
from core.memory_prediction.peak_memory import predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import Settings
from sweeps.early_stopping.rungs import expected_tokens
from sweeps.lanes.lane_planning import AutoLanes, LanePlan, device_kind, plan_lanes, worker_memory_bytes
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.memory_knowledge.memory_observations import file_of_device
from sweeps.planning.sweep_plan import place_of_trials
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig

_AS_FAST = 0.95
"""From this share of the best on fewer lanes are as good."""
_WORTH_MEASURING_S = 120.0
"""Of training in all, roughly: in a shorter sweep the measurement, six seconds, costs more than it can win."""
_ROUGH_TOKENS_PER_S = 50_000.0
"""Of a model that costs no operations at all, on processors: what a step costs besides."""
_ROUGH_FLOPS = {"cpu": 3e11, "cuda": 5e13}
_MOST_ON_A_GPU = 8


class LanePace(Settings):
    """What some processes came to that trained side by side."""

    processes: int
    threads: int
    tokens_per_s: float | None
    """Of all together; None: one of them ended, as without memory."""


class LanePaces(OfShape):
    """All ways that were tried for one shape on one kind of machine."""

    paces: tuple[LanePace, ...]

    def of(self, ways: Sequence[Way]) -> tuple[LanePace, ...]:
        """Those of them that were tried, in their order."""
        by_way = {Way(one.processes, one.threads): one for one in self.paces}
        return tuple(by_way[way] for way in ways if way in by_way)


def auto_lanes(
    sweep: SweepConfig, *, cluster: Mapping[str, Any], vocabulary_size: int, results_folder: Path
) -> AutoLanes | None:
    """How a sweep's lanes divide the processors, or a GPU, of this machine; None where there is no saying.

    Measures for some seconds unless it is known, or the sweep is too short for that.

    Args:
        cluster: What `plan_lanes` is told of its processors and GPUs; its nodes are taken to be like this machine.
    """
    resources = sweep.resources
    if resources.concurrent_trials != "auto":
        return None
    alone = plan_lanes(resources, num_trials=1, **cluster)
    if alone.use_gpu and (resources.workers_per_trial > 1 or not torch.cuda.is_available()):
        # Workers of one trial cannot share a GPU; and where the driver has none, nothing can be measured.
        return None
    all_ways = _ways(sweep, is_on_gpu=alone.use_gpu)
    if len(all_ways) == 1:
        return AutoLanes(all_ways[0].processes, all_ways[0].threads, "")
    # Not the file's own settings: those that are swept may lie outside the space, a model that no trial has.
    run = middle_run(sweep)

    def needed_bytes(rows: int) -> int:
        place = place_of_trials(sweep, alone)
        return predict_memory(run, vocabulary_size, micro_batch_size=rows, setup=place).peak_bytes

    least = needed_bytes(1)
    ways = [way for way in all_ways if least <= _memory_of(sweep, alone, way)] or all_ways[:1]
    if len(ways) == 1:
        return AutoLanes(ways[0].processes, ways[0].threads, "memory holds no more")
    usual = ways[0] if alone.use_gpu else ways[-1]
    kept = KeptMeasurements(
        file_of_device(results_folder, device_kind(alone), "-lanes"), LanePaces, what="how fast lanes are side by side"
    )
    shape = speed_shape(run, vocabulary_size)
    known = kept.read().get(shape)
    paces = () if known is None else known.of(ways)
    if len(paces) == len(ways):
        return _chosen(paces, sweep, "measured before")
    device_type = "cuda" if alone.use_gpu else "cpu"
    if _expected_s(sweep, run, vocabulary_size, device_type=device_type) < _WORTH_MEASURING_S:
        return AutoLanes(usual.processes, usual.threads, "not measured, for the sweep is short")
    rows = rows_of_measurement(run, num_workers=resources.workers_per_trial)
    while rows > 1 and needed_bytes(rows) > _memory_of(sweep, alone, ways[-1]):
        rows //= 2
    found = measure_side_by_side(
        run,
        ways,
        vocabulary_size=vocabulary_size,
        rows=rows,
        device="cuda:0" if alone.use_gpu else "cpu",
        share_device=alone.use_gpu,
    )
    paces = tuple(
        LanePace(processes=one.way.processes, threads=one.way.threads, tokens_per_s=one.tokens_per_s) for one in found
    )
    if sum(one.tokens_per_s is not None for one in paces) < 2:
        return AutoLanes(usual.processes, usual.threads, "could not be measured: this machine is too busy")
    if not all(one.was_quiet for one in found):
        # Others' work has a part in these figures, so they hold for this time only.
        return _chosen(paces, sweep, "measured beside other work")
    kept.add({shape: LanePaces(shape=shape, paces=paces)})
    return _chosen(paces, sweep, "measured")


def rows_of_measurement(run: RunConfig, *, num_workers: int) -> int:
    """Rows of a micro-batch with which speed is measured."""
    asked, batch_size = run.training.micro_batch_size, run.training.batch_size
    if asked != "auto":
        return min(asked, math.ceil(batch_size / num_workers))
    return automatic_micro_batch(
        batch_size=batch_size,
        num_workers=num_workers,
        sequence_length=run.model.sequence_length,
        largest_feasible=None,
    )


def _ways(sweep: SweepConfig, *, is_on_gpu: bool) -> list[Way]:
    """One lane, two, four and so on, and as many as there are cores (or as may share a GPU)."""
    cores, workers = os.cpu_count() or 1, sweep.resources.workers_per_trial
    if is_on_gpu:
        num_gpus = max(1, torch.cuda.device_count())
        most = min(_MOST_ON_A_GPU, math.ceil(sweep.budget.trials / num_gpus))
    else:
        num_gpus = 1
        most = min(max(1, cores // workers), sweep.budget.trials)
    counts = sorted({1 << power for power in range(most.bit_length())} | {most})
    return [Way(count * workers, max(1, cores // (count * workers * num_gpus))) for count in counts]


def _memory_of(sweep: SweepConfig, alone: LanePlan, way: Way) -> int:
    """Bytes that each process has for training in a way; none where the machine cannot give all what the file says."""
    if alone.use_gpu:
        _, device_bytes = torch.cuda.mem_get_info(0)
        lanes = replace(alone, gpus_per_worker=1 / way.processes)
        return worker_memory_bytes(sweep.resources, lanes, device_bytes=device_bytes)
    share = host_memory_share(num_processes=way.processes)
    asked = sweep.resources.memory_bytes(share)
    return asked if asked <= share else 0


def speed_shape(run: RunConfig, vocabulary_size: int) -> str:
    """All that the speed of lanes depends on, in words."""
    training = run.training
    return (
        f"{run.model!r}, vocabulary 2**{round(math.log2(vocabulary_size))}, masking {run.objective.masking_rate}, "
        f"precision {training.precision}, checkpointing {training.activation_checkpointing}, lora {training.lora!r}, "
        f"batch {training.batch_size}, micro-batch {training.micro_batch_size}, {os.cpu_count()} cores of "
        f"{platform.machine()}, torch {torch.__version__}"
    )


def expected_sweep_tokens(sweep: SweepConfig) -> float:
    """Roughly the tokens that the trials of a sweep train together, without its repeats."""
    tokens = sweep.budget.trials * expected_tokens(sweep.early_stopping, sweep.budget.trial_tokens)
    return tokens if sweep.budget.tokens is None else min(tokens, sweep.budget.tokens)


def _expected_s(sweep: SweepConfig, run: RunConfig, vocabulary_size: int, *, device_type: str) -> float:
    """Roughly the seconds that the tokens that trials come to take one machine, as a lower limit."""
    tokens = expected_sweep_tokens(sweep)
    by_operations = tokens * training_flops_a_token(run, vocabulary_size) / _ROUGH_FLOPS[device_type]
    return by_operations if device_type == "cuda" else max(by_operations, tokens / _ROUGH_TOKENS_PER_S)


def _chosen(paces: Sequence[LanePace], sweep: SweepConfig, how: str) -> AutoLanes:
    known = [(one, one.tokens_per_s) for one in paces if one.tokens_per_s is not None]
    best = max((rate for _, rate in known), default=0.0)
    chosen, rate = next((one, rate) for one, rate in known if rate >= _AS_FAST * best)
    workers = sweep.resources.workers_per_trial

    def words(pace: LanePace, rate: float | None) -> str:
        count = pace.processes // workers
        lanes = f"{count} lane{'s' if count > 1 else ''} x {pace.threads} thread{'s' if pace.threads > 1 else ''}"
        return f"{lanes} {'ran out of memory' if rate is None else f'{rate:,.0f} tokens/s'}"

    others = "; ".join(words(one, one.tokens_per_s) for one in paces if one is not chosen)
    return AutoLanes(chosen.processes, chosen.threads, f"{how}: {words(chosen, rate)} in all, {others}")
