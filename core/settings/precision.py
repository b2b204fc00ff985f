"""Number format of a run: bf16 where the hardware supports it natively; weights are always fp32."""

import contextlib
import os
from dataclasses import dataclass
from typing import Literal

import torch

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]

_LIMITS_WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"})
"""Values of ONEDNN_MAX_CPU_ISA below AVX512_CORE_BF16 and AVX2_VNNI_2; every higher one includes bf16."""


@dataclass(frozen=True)
class Precision:
    """Number format of matrix products on one kind of device."""

    name: Literal["fp32", "bf16", "fp16"]
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the operands of a matrix product."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    def autocast(self, *, enabled: bool = True) -> contextlib.AbstractContextManager[object]:
        """Context in which matrix products run in this format. fp32 also disables an outer autocast."""
        if self.name == "fp32":
            return torch.autocast(self.device_type, enabled=False)
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=enabled)


def choose_precision(wanted: PrecisionName, device: torch.device) -> Precision:
    """Number format of a setting on this device.

    `auto` gives bf16 only with native hardware support, because emulated bf16 is slower than fp32.

    Raises:
        ValueError: fp16 on a CPU, where it needs a loss scale and gains no speed.
    """
    if wanted == "auto":
        return Precision("bf16" if computes_bf16(device) else "fp32", device.type)
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("training.precision=fp16 is for GPUs without bf16; on a CPU use auto, bf16 or fp32")
    return Precision(wanted, device.type)


def allow_tf32(device: torch.device) -> None:
    """Allow TF32 on CUDA: fp32 products round their operands to 10 mantissa bits and run several times faster."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def computes_bf16(device: torch.device) -> bool:
    """True if the device multiplies bf16 matrices in hardware and oneDNN may use it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        is_native = bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
        return is_native and _onednn_may_use_bf16()
    return False


def _onednn_may_use_bf16() -> bool:
    """True unless ONEDNN_MAX_CPU_ISA forbids oneDNN the bf16 instructions of the processor.

    Without them oneDNN converts bf16 products to fp32, which is slower than fp32 alone.
    """
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in _LIMITS_WITHOUT_BF16
