"""Memory of a user's class that cannot be traced: measured with one, two and four rows, and continued from there."""

from dataclasses import replace
from functools import lru_cache

from core.memory_prediction.memory_trace import RunShape, trace_steps

_ROWS = (1, 2, 4)
"""Rows of the measured micro-batches; each doubles the one before."""


def measured_peak(shape: RunShape) -> tuple[int, dict[str, int]]:
    """(peak in bytes, bytes of its parts) of a run of this shape.

    The class trains for real on the CPU, with few rows. Its memory grows by as much a row as it did between those, and
    gradients count beside the activations: for a batch in a single micro-batch that is too much, by the gradients.
    """
    rows = shape.micro_batch_size
    small = max(size for size in _ROWS if size <= rows)
    peak, parts = _peak_with(shape, small)
    if small == rows:
        return peak, parts
    peaks = [_peak_with(shape, size)[0] for size in _ROWS]
    a_row = max((peaks[1] - peaks[0]) / (_ROWS[1] - _ROWS[0]), (peaks[2] - peaks[1]) / (_ROWS[2] - _ROWS[1]))
    more_bytes = round(a_row * (rows - small))
    return peak + more_bytes, parts | {"activations": parts.get("activations", 0) + more_bytes}


def _peak_with(shape: RunShape, rows: int) -> tuple[int, dict[str, int]]:
    # Two micro-batches: the second one finds the gradients of the first.
    peak, parts = _measured(replace(shape, micro_batch_size=rows, local_rows=2 * rows))
    return peak, dict(parts)


@lru_cache(maxsize=64)
def _measured(shape: RunShape) -> tuple[int, tuple[tuple[str, int], ...]]:
    peak, parts = trace_steps(shape, is_real=True).peak()
    return peak, tuple((str(part), num_bytes) for part, num_bytes in parts.items())
