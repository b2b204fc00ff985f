"""One worker that adds up tensors with the others.

    python -m core.doctor.all_reduce_worker gloo|nccl RANK COUNT FOLDER

It writes one line of JSON, and ends with an error if a sum is wrong.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

_NUM_ELEMENTS = 2**22
_REPEATS = 5


def _add_up(backend: str, rank: int, count: int, folder: Path) -> float:
    """Bytes of a tensor that were added up in a second, with the fastest of several repeats."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        backend, init_method=f"file://{folder}/{backend}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    fastest_s = float("inf")
    for _ in range(_REPEATS + 1):  # The first one connects.
        tensor = torch.full((_NUM_ELEMENTS,), float(rank + 1), device=device)
        started_at = time.perf_counter()
        dist.all_reduce(tensor)
        is_right = bool((tensor == count * (count + 1) / 2).all())  # Waits for the device.
        fastest_s = min(fastest_s, time.perf_counter() - started_at)
        if not is_right:
            raise ValueError("the sum over the workers is wrong")
    dist.destroy_process_group()
    return _NUM_ELEMENTS * 4 / fastest_s


if __name__ == "__main__":
    print(json.dumps({"bytes_per_s": _add_up(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))}))
