"""Rates of a device, and its number formats."""

import time
from collections.abc import Iterator

import torch

from core.doctor.check import Check
from core.memory.host_memory import host_memory_share
from core.settings.precision import computes_bf16
from core.step.step_profile import matmul_flops_per_s
from data_pipeline.schema.settings import format_bytes

_COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}


def rates_of(device: torch.device) -> Iterator[Check]:
    """Number format, rate of matrix products and memory bandwidth."""
    is_native = computes_bf16(device)
    yield Check("precision", "pass", f"auto is {'bf16' if is_native else 'fp32'} on {device.type}")
    formats = [torch.float32, torch.bfloat16] if is_native else [torch.float32]
    rates = {str(one).removeprefix("torch."): matmul_flops_per_s(device, one) for one in formats}
    yield Check(
        "matrix products",
        "pass",
        ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items()),
        {f"matmul_{name}_flops_per_s": rate for name, rate in rates.items()},
    )
    rate = _copied_bytes_per_s(device)
    yield Check("memory bandwidth", "pass", f"{format_bytes(int(rate))}/s", {"bandwidth_bytes_per_s": rate})


def _copied_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written by copies, of the fastest of several."""
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory_share()
    source = torch.zeros(min(_COPIED_BYTES[device.type], free_bytes // 8), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    fastest_s = float("inf")
    for _ in range(5):
        started_at = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest_s = min(fastest_s, time.perf_counter() - started_at)
    return 2 * source.nbytes / fastest_s
