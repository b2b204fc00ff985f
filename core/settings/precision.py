"""In which number format a run computes: bf16 where the hardware does so natively, weights always in fp32."""

import contextlib
import os
from dataclasses import dataclass
from typing import Literal

import torch

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Precision:
    """Number format of matrix products on one kind of device."""

    name: Literal["fp32", "bf16", "fp16"]
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """Format of the operands of a matrix product."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    def autocast(self, *, enabled: bool = True) -> contextlib.AbstractContextManager[object]:
        """Context in which matrix products run in this format. fp32 switches autocast off whatever is around it."""
        if self.name == "fp32":
            return torch.autocast(self.device_type, enabled=False)
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=enabled)


def choose_precision(wanted: PrecisionName, device: torch.device) -> Precision:
    """The format that a setting means on this device.

    `auto` is bf16 only where the hardware multiplies bf16 natively: emulated, it is slower than fp32.

    Raises:
        ValueError: fp16 on a CPU, whose range would need a loss scale for no gain in speed.
    """
    if wanted == "auto":
        return Precision("bf16" if computes_bf16(device) else "fp32", device.type)
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("training.precision=fp16 is for GPUs without bf16; on a CPU use auto, bf16 or fp32")
    return Precision(wanted, device.type)


def allow_tf32(device: torch.device) -> None:
    """On CUDA let fp32 matrix products round their operands to 10 bits (TF32): several times as fast, exact enough."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        is_native = bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
        return is_native and _onednn_may_use_bf16()
    return False


def _onednn_may_use_bf16() -> bool:
    """Whether ONEDNN_MAX_CPU_ISA, if it is set, leaves oneDNN the bf16 instructions of a processor.

    Without them oneDNN multiplies bf16 by way of fp32, which is slower than fp32 itself.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit in ("", "ALL", "DEFAULT") or "BF16" in limit or "AMX" in limit
