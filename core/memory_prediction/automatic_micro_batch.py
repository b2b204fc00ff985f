"""Choose the micro-batch size for `micro_batch_size: auto`."""

import math
from functools import partial

import numpy as np

from core.distributed.workers import Workers
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.settings.precision import computes_bf16
from core.settings.run_config import RunConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus

_TOKENS_AT_ONCE = 8192
"""Beyond a few thousand tokens, a larger micro-batch uses more memory without more speed."""


def choose_micro_batch(
    run: RunConfig, data: PreparedCorpus, workers: Workers, *, memory_limit_bytes: int | None
) -> int:
    """Micro-batch size in rows; the same on all workers, which all call it.

    Without a memory limit no prediction is made, and only the number of tokens decides.
    """
    asked = run.training.micro_batch_size
    if asked != "auto":
        return asked
    choose = partial(
        automatic_micro_batch,
        batch_size=run.training.largest_batch_size,
        num_workers=workers.count,
        sequence_length=data.train.sequence_length,
    )
    feasible = choose(largest_feasible=None)
    # The rule gives powers of two, so halving finds the size, mostly with one prediction; the largest feasible size
    # would take ten.
    while feasible > 1 and memory_limit_bytes is not None:
        setup = worker_setup_of(data, workers)
        needed = predict_memory(run, data.vocabulary.size, micro_batch_size=feasible, setup=setup)
        if needed.peak_bytes <= memory_limit_bytes:
            break
        feasible //= 2
    return -workers.largest(-choose(largest_feasible=feasible))


def automatic_micro_batch(
    *, batch_size: int, num_workers: int, sequence_length: int, largest_feasible: int | None
) -> int:
    """Micro-batch size in rows: the largest power of two that

    - holds about 8,192 tokens at most, but at least one row,
    - is predicted to fit in memory, if there is a prediction; one row is always tried, as predictions may be wrong,
    - divides the rows of a worker evenly, unless that would more than halve the size: one short last micro-batch costs
      little time, many tiny ones cost much.

    Args:
        batch_size: Rows per step over all workers.
        largest_feasible: Largest size predicted to fit; None without a prediction.
    """
    rows_per_worker = math.ceil(batch_size / num_workers)
    limit = min(rows_per_worker, max(1, _TOKENS_AT_ONCE // sequence_length))
    if largest_feasible is not None:
        limit = max(1, min(limit, largest_feasible))
    largest = 1 << (limit.bit_length() - 1)
    dividing = math.gcd(rows_per_worker, largest)
    return dividing if 2 * dividing >= largest else largest


def worker_setup_of(data: PreparedCorpus, workers: Workers) -> WorkerSetup:
    """Worker setup of a run on this corpus, for memory predictions."""
    is_gpu = workers.device.type == "cuda"
    return WorkerSetup(
        num_workers=workers.count,
        device_type="cuda" if is_gpu else "cpu",
        computes_bf16=not is_gpu or computes_bf16(workers.device),
        has_document_ids=data.train.rows(np.zeros(1, np.int64)).document_ids is not None,
    )
