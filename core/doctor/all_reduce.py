"""Whether workers on this machine can add up tensors, and how fast: NCCL between GPUs, gloo between processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from core.doctor.check import Check
from data_pipeline.schema.settings import format_bytes

_TIMEOUT_S = 120.0


def all_reduces_of(device: torch.device) -> Iterator[Check]:
    """gloo between two processes, and NCCL between all visible GPUs."""
    yield _check("gloo", 2)
    count = torch.cuda.device_count()
    if device.type == "cuda" and count > 1:
        yield _check("nccl", count)
    else:
        yield Check("all-reduce, nccl", "not applicable", f"{count} GPUs on this machine; it needs two")


def _check(backend: str, count: int) -> Check:
    subject = f"all-reduce, {backend}"
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "core.doctor.all_reduce_worker", backend, str(rank), str(count), folder],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            answers = [worker.communicate(timeout=_TIMEOUT_S) for worker in workers]
        except subprocess.TimeoutExpired:
            return Check(subject, "fail", f"{count} workers gave no answer within {_TIMEOUT_S:.0f} s")
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    failed = [rank for rank, worker in enumerate(workers) if worker.returncode != 0]
    if failed:
        last = (answers[failed[0]][1].strip().splitlines() or ["no message"])[-1]
        return Check(subject, "fail", f"rank {failed[0]} of {count}: {last}")
    rate = min(json.loads(output)["bytes_per_s"] for output, _ in answers)
    words = f"{count} workers add up {format_bytes(int(rate))}/s each"
    return Check(subject, "pass", words, {f"all_reduce_{backend}_bytes_per_s": rate})
