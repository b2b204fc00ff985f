"""Memory of a user's class that cannot be traced: measured with up to sixteen rows, and continued from there."""

from dataclasses import replace
from functools import lru_cache

from core.memory_prediction.memory_trace import RunShape, trace_steps

MOST_ROWS_MEASURED = 16
"""A power of two. With few rows the peak may lie at another moment of the step, and grow less a row."""


def measured_peak(shape: RunShape) -> tuple[int, dict[str, int]]:
    """(peak in bytes, bytes of its parts) of a run of this shape.

    The class trains for real on the CPU. Beyond sixteen rows its memory grows by as much a row as between eight and
    sixteen. Gradients count beside the activations: for a batch in a single micro-batch that is too much, by
    the gradients.
    """
    rows = shape.micro_batch_size
    if rows <= MOST_ROWS_MEASURED:
        # Powers of two alone: a run that has run out of memory asks for other sizes, and has no memory to measure them.
        return _peak_with(shape, 1 << (rows - 1).bit_length())
    half, most = MOST_ROWS_MEASURED // 2, MOST_ROWS_MEASURED
    (lower, _), (upper, parts) = (_peak_with(shape, size) for size in (half, most))
    more_bytes = round((upper - lower) / (most - half) * (rows - most))
    return upper + more_bytes, parts | {"activations": parts.get("activations", 0) + more_bytes}


def _peak_with(shape: RunShape, rows: int) -> tuple[int, dict[str, int]]:
    # Two micro-batches: the second one finds the gradients of the first.
    peak, parts = _measured(replace(shape, micro_batch_size=rows, local_rows=2 * rows))
    return peak, dict(parts)


@lru_cache(maxsize=256)
def _measured(shape: RunShape) -> tuple[int, tuple[tuple[str, int], ...]]:
    peak, parts = trace_steps(shape, is_real=True).peak()
    return peak, tuple((str(part), num_bytes) for part, num_bytes in parts.items())
