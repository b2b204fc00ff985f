"""What `micro_batch_size: auto` means."""

import math

_TOKENS_AT_ONCE = 8192
"""Beyond some thousand tokens a larger micro-batch keeps the processor no busier, it only takes memory."""


def automatic_micro_batch(
    *, batch_size: int, num_workers: int, sequence_length: int, largest_feasible: int | None
) -> int:
    """Rows of one forward/backward: the largest power of two that

    - holds at most about 8,192 tokens (a row is at least taken whole),
    - is predicted to fit into memory, where there is a prediction,
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
