"""What `micro_batch_size: auto` means."""

import math
from functools import partial

import numpy as np

from core.distributed.workers import Workers
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus

_TOKENS_AT_ONCE = 8192
"""Beyond some thousand tokens a larger micro-batch keeps the processor no busier, it only takes memory."""


def choose_micro_batch(
    run: RunConfig, data: PreparedCorpus, workers: Workers, *, memory_limit_bytes: int | None
) -> int:
    """Rows of one forward/backward on one worker; the same on all workers.

    Without a limit there is no prediction: then 8,192 tokens at once decide alone.
    """
    asked = run.training.micro_batch_size
    if asked != "auto":
        return asked
    choose = partial(
        automatic_micro_batch,
        batch_size=run.training.batch_size,
        num_workers=workers.count,
        sequence_length=data.train.sequence_length,
    )
    feasible = choose(largest_feasible=None)
    # The rule asks for powers of two: halving finds the one it wants, mostly by the first prediction, where the largest
    # feasible size takes ten.
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
    """Rows of one forward/backward: the largest power of two that

    - holds at most about 8,192 tokens (a row is at least taken whole),
    - is predicted to fit into memory, where there is a prediction (one row is tried even if not: it might be wrong),
    - divides a worker's rows without rest, unless that would cost more than half the size: a short last micro-batch is
      weighted right and costs little time, many tiny ones cost much.
    """
    rows_per_worker = math.ceil(batch_size / num_workers)
    limit = min(rows_per_worker, max(1, _TOKENS_AT_ONCE // sequence_length))
    if largest_feasible is not None:
        limit = max(1, min(limit, largest_feasible))
    largest = 1 << (limit.bit_length() - 1)
    dividing = math.gcd(rows_per_worker, largest)
    return dividing if 2 * dividing >= largest else largest


def worker_setup_of(data: PreparedCorpus, workers: Workers) -> WorkerSetup:
    """Where these workers train on this corpus, for predictions."""
    return WorkerSetup(
        num_workers=workers.count,
        device_type="cuda" if workers.device.type == "cuda" else "cpu",
        has_document_ids=data.train.rows(np.zeros(1, np.int64)).document_ids is not None,
    )
