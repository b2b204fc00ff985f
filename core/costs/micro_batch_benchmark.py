"""Measure the fastest micro-batch size: a few forward and backward passes of each size before a run.

The micro-batch size affects only speed and memory, so a few passes replace a search.
"""

import time
from collections.abc import Iterator, Sequence

from core.distributed.collective_attempt import attempt_together
from core.distributed.workers import Workers
from core.memory.memory_limit import memory_limit
from core.memory.memory_reports import LimitBy, MicroBatchSpeed
from core.memory.out_of_memory import OomFacts
from core.model_files.initial_weights import fresh_model
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus

_TIMED_PASSES = 3
_CLEARLY_SLOWER = 0.95
"""Two consecutive sizes below this share of the best speed end the measurement: larger ones only need more memory."""
_AS_FAST = 0.98
"""A smaller micro-batch with at least this share of the best speed is preferred, because it needs less memory."""
_FEWEST_TOKENS = 512
"""Fewer tokens at once keep no device busy; smaller sizes are measured only if a batch has no more rows."""


def sizes_to_measure(*, largest: int, sequence_length: int) -> tuple[int, ...]:
    """Sizes in rows, ascending: powers of two from a few hundred tokens up, and `largest`.

    Args:
        largest: Largest size that is predicted to fit.
    """
    smallest = min(largest, max(1, _FEWEST_TOKENS // sequence_length))
    powers = (1 << exponent for exponent in range(largest.bit_length()))
    return tuple(sorted({size for size in powers if smallest <= size <= largest} | {largest}))


def measure_micro_batches(
    run: RunConfig,
    data: PreparedCorpus,
    *,
    workers: Workers,
    sizes: Sequence[int],
    memory_limit_bytes: int | None = None,
    memory_limit_by: LimitBy = "counting",
    all_sizes: bool = False,
) -> tuple[MicroBatchSpeed, ...]:
    """Speed of each size, ascending, on the slowest worker; the same on all workers, which all call it.

    Args:
        sizes: Micro-batch sizes in rows.
        all_sizes: False skips sizes that are certain to be slower or not to fit.
    """
    found: list[MicroBatchSpeed] = []
    for rows in sorted(sizes):
        found.append(_measure(run, data, workers, rows, memory_limit_bytes, memory_limit_by))
        if not all_sizes and _is_past_the_best(found):
            break
    return tuple(found)


def fastest(speeds: Sequence[MicroBatchSpeed], *, largest: int) -> int | None:
    """The smallest size up to `largest` that is about as fast as the fastest one; None if none fits in memory."""
    known = [(one.rows, one.rows_per_s) for one in speeds if one.rows_per_s is not None and one.rows <= largest]
    best = max((rate for _, rate in known), default=0.0)
    return min((rows for rows, rate in known if rate >= _AS_FAST * best), default=None)


def _is_past_the_best(found: Sequence[MicroBatchSpeed]) -> bool:
    rates = [one.rows_per_s for one in found]
    if rates[-1] is None:
        return True
    best = max(rate for rate in rates if rate is not None)
    return len(rates) > 2 and all(rate is not None and rate < _CLEARLY_SLOWER * best for rate in rates[-2:])


def _measure(
    run: RunConfig, data: PreparedCorpus, workers: Workers, rows: int, limit_bytes: int | None, limit_by: LimitBy
) -> MicroBatchSpeed:
    with memory_limit(limit_bytes, workers.device, by=limit_by) as meter:
        passes: Iterator[float] | OomFacts = attempt_together(
            lambda: _passes(run, data, workers, rows), workers, phase="forward"
        )
        for _ in range(2):  # The second pass adds to existing gradients, as in a batch of several micro-batches.
            if isinstance(passes, OomFacts):
                return MicroBatchSpeed(rows, None, meter.peak_bytes)
            timed = passes
            first = attempt_together(lambda: next(timed), workers, phase="backward")  # noqa: B023
            if isinstance(first, OomFacts):
                return MicroBatchSpeed(rows, None, meter.peak_bytes)
        # Stop counting memory, which takes time, so that these passes are as fast as in a long run.
        meter.stop()
        assert not isinstance(passes, OomFacts)
        seconds = [next(passes) for _ in range(_TIMED_PASSES)]
        # Use the fastest pass, because disturbances only slow it, and the slowest worker, because all wait for it.
        slowest_ns = workers.largest(round(min(seconds) * 1e9))
        return MicroBatchSpeed(rows, rows * 1e9 / max(slowest_ns, 1), meter.peak_bytes)


def _passes(run: RunConfig, data: PreparedCorpus, workers: Workers, rows: int) -> Iterator[float]:
    """Seconds of each pass, endlessly."""
    model = fresh_model(run, data, workers.device)
    alone = Workers(device=workers.device)  # Nothing is exchanged.
    precision = choose_precision(run.training.precision, workers.device)
    step = OptimizerStep(
        model,
        build_optimizer(model, run.training, tokens_per_step=1.0, precision=precision),
        BatchSource(data.train, data.vocabulary, masking_rate=run.objective.masking_rate, seed=run.training.seed),
        alone,
        precision,
        batch_size=rows,
        micro_batch_size=rows,
        tokens_per_step=1.0,
    )

    def endless() -> Iterator[float]:
        while True:
            started_at = time.perf_counter()
            step.rehearse(rows)
            yield time.perf_counter() - started_at

    return endless()
