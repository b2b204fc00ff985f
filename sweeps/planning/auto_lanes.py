"""Number of lanes for `concurrent_trials: auto`: the fastest in total tokens per second, by measurement.

The best division of the cores (few lanes with many threads, or many lanes with few) depends on the model and the
machine. A measurement of some seconds decides it, and `results/memory/` keeps the result. Among equally fast divisions
the one with the fewest lanes wins: each trial ends sooner, the search learns more from it, and fewer lanes use less
memory and start sooner.
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
from core.costs.training_flops import rough_training_flops_a_token
from core.memory.device_facts import DeviceFacts, smallest_of
from core.memory.host_memory import host_memory_share
from core.memory_prediction.automatic_micro_batch import automatic_micro_batch
from core.memory_prediction.peak_memory import predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import Settings
from sweeps.early_stopping.rungs import expected_tokens
from sweeps.lanes.cards import cards_now
from sweeps.lanes.lane_planning import AutoLanes, LanePlan, device_kind, plan_lanes, worker_memory_bytes
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.memory_knowledge.memory_observations import file_of_device
from sweeps.planning.sweep_plan import worker_setup_of
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig

_AS_FAST = 0.95
"""Divisions that reach this share of the best speed count as equally fast."""
_WORTH_MEASURING_S = 120.0
"""Expected seconds of training in the sweep; in a shorter one the six-second measurement costs more than it gains."""
_ROUGH_TOKENS_PER_S = 50_000.0
"""Upper limit of the speed on CPUs: the rate of a model without any operations, from the overhead of a step."""
_ROUGH_FLOPS = {"cpu": 3e11, "cuda": 5e13}
_MOST_ON_A_GPU = 8


class LanePace(Settings):
    """Measured speed of processes that train side by side."""

    processes: int
    threads: int
    tokens_per_s: float | None
    """Speed of all processes together. None: one of them ended, e.g. out of memory."""


class LanePaces(OfShape):
    """All measured divisions for one shape on one kind of machine."""

    paces: tuple[LanePace, ...]

    def of(self, ways: Sequence[Way]) -> tuple[LanePace, ...]:
        """The measurements of these divisions, in the same order; unmeasured ones are left out."""
        by_way = {Way(one.processes, one.threads): one for one in self.paces}
        return tuple(by_way[way] for way in ways if way in by_way)


def auto_lanes(
    sweep: SweepConfig,
    *,
    cluster: Mapping[str, Any],
    vocabulary_size: int,
    results_folder: Path,
    may_measure: bool = True,
) -> AutoLanes | None:
    """Division of this machine's cores, or of a GPU, among the lanes of a sweep; None if it cannot be measured here.

    Measures for some seconds, unless the result is stored or the sweep is too short.

    Args:
        cluster: CPUs and GPUs as `plan_lanes` takes them; its nodes are assumed to equal this machine.
        may_measure: False: the usual division where the result is not stored.
    """
    resources = sweep.resources
    if resources.concurrent_trials != "auto":
        return None
    alone = plan_lanes(resources, num_trials=1, **cluster)
    if alone.use_gpu and (resources.workers_per_trial > 1 or not torch.cuda.is_available()):
        # Workers of one trial cannot share a GPU, and a driver without a GPU cannot measure one.
        return None
    all_ways = _ways(sweep, is_on_gpu=alone.use_gpu)
    if len(all_ways) == 1:
        return AutoLanes(all_ways[0].processes, all_ways[0].threads, "")
    cards = cards_now() if alone.use_gpu else ()
    smallest = smallest_of(cards)
    # The file's own values of swept settings may lie outside the search space, so measure its middle instead.
    run = middle_run(sweep)

    def needed_bytes(rows: int) -> int:
        setup = worker_setup_of(sweep, alone, computes_bf16=all(card.computes_bf16 for card in cards))
        return predict_memory(run, vocabulary_size, micro_batch_size=rows, setup=setup).peak_bytes

    least = needed_bytes(1)
    ways = [way for way in all_ways if least <= _memory_of(sweep, alone, way, smallest)] or all_ways[:1]
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
        return AutoLanes(usual.processes, usual.threads, "not measured: the sweep is short")
    if not may_measure:
        return AutoLanes(usual.processes, usual.threads, "not measured yet")
    rows = rows_of_measurement(run, num_workers=resources.workers_per_trial)
    while rows > 1 and needed_bytes(rows) > _memory_of(sweep, alone, ways[-1], smallest):
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
        # Other processes disturbed these figures, so do not store them.
        return _chosen(paces, sweep, "measured beside other work")
    kept.add({shape: LanePaces(shape=shape, paces=paces)})
    return _chosen(paces, sweep, "measured")


def rows_of_measurement(run: RunConfig, *, num_workers: int) -> int:
    """Micro-batch size for the speed measurement, in rows."""
    asked, batch_size = run.training.micro_batch_size, run.training.largest_batch_size
    if asked != "auto":
        return min(asked, math.ceil(batch_size / num_workers))
    return automatic_micro_batch(
        batch_size=batch_size,
        num_workers=num_workers,
        sequence_length=run.model.sequence_length,
        largest_feasible=None,
    )


def _ways(sweep: SweepConfig, *, is_on_gpu: bool) -> list[Way]:
    """Divisions into 1, 2, 4, ... lanes, and into the maximum: all cores, or the most lanes that may share a GPU."""
    cores, workers = os.cpu_count() or 1, sweep.resources.workers_per_trial
    if is_on_gpu:
        num_gpus = max(1, torch.cuda.device_count())
        most = min(_MOST_ON_A_GPU, math.ceil(sweep.num_trials / num_gpus))
    else:
        num_gpus = 1
        most = min(max(1, cores // workers), sweep.num_trials)
    counts = sorted({1 << power for power in range(most.bit_length())} | {most})
    return [Way(count * workers, max(1, cores // (count * workers * num_gpus))) for count in counts]


def _memory_of(sweep: SweepConfig, alone: LanePlan, way: Way, card: DeviceFacts | None) -> int:
    """Training memory of each process in bytes; 0 if the machine cannot give every process the file's memory."""
    if card is not None:
        lanes = replace(alone, gpus_per_worker=1 / way.processes)
        return worker_memory_bytes(sweep.resources, lanes, device_bytes=card.free_bytes)
    share = host_memory_share(num_processes=way.processes)
    asked = sweep.resources.memory_bytes(share)
    return asked if asked <= share else 0


def speed_shape(run: RunConfig, vocabulary_size: int) -> str:
    """Key of a measurement: everything that the speed of lanes depends on, as text."""
    training = run.training
    return (
        f"{run.model.model_dump()}, vocabulary 2**{round(math.log2(vocabulary_size))}, "
        f"masking {run.objective.masking_rate}, "
        f"precision {training.precision}, checkpointing {training.activation_checkpointing}, lora {training.lora!r}, "
        f"batch {training.batch_size}, micro-batch {training.micro_batch_size}, {os.cpu_count()} cores of "
        f"{platform.machine()}, torch {torch.__version__}"
    )


def expected_sweep_tokens(sweep: SweepConfig) -> float:
    """Estimated total tokens of a sweep's trials, without its repeats."""
    if sweep.early_stopping.method == "full-length":
        return sweep.max_tokens
    tokens = sweep.num_trials * expected_tokens(sweep.early_stopping, sweep.budget.trial_tokens)
    return tokens if sweep.budget.tokens is None else min(tokens, sweep.budget.tokens)


def _expected_s(sweep: SweepConfig, run: RunConfig, vocabulary_size: int, *, device_type: str) -> float:
    """Estimated seconds of training in the sweep on one machine, as a lower limit."""
    tokens = expected_sweep_tokens(sweep)
    by_operations = tokens * rough_training_flops_a_token(run, vocabulary_size) / _ROUGH_FLOPS[device_type]
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
