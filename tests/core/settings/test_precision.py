"""The number format that a setting means, against what the processor says of itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.settings.precision import allow_tf32, choose_precision, computes_bf16

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo (run on Linux)")
def test_auto_is_bf16_exactly_where_the_processor_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    is_native = _has_bf16()
    assert computes_bf16(CPU) == is_native
    assert choose_precision("auto", CPU).name == ("bf16" if is_native else "fp32")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo (run on Linux)")
@pytest.mark.parametrize(
    ("limit", "leaves_bf16"),
    [
        *(("SSE41", False), ("AVX2", False), ("avx2", False), ("AVX512_CORE", False), ("AVX512_CORE_VNNI", False)),
        *(
            ("AVX512_CORE_BF16", True),
            ("AVX512_CORE_FP16", True),
            ("AVX512_CORE_AMX", True),
            ("AVX10_1_512", True),
            ("ALL", True),
            ("DEFAULT", True),
            ("", True),
        ),
    ],
)
def test_auto_is_fp32_where_onednn_is_told_to_leave_bf16_instructions_alone(
    limit: str, leaves_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_precision("auto", CPU).name == ("bf16" if leaves_bf16 and _has_bf16() else "fp32")


def test_a_process_of_an_older_processor_computes_in_fp32() -> None:
    """As `make test-older-cpu` sets it; oneDNN reads the variable once, when a process first needs it."""
    script = (
        "import torch; from core.settings.precision import choose_precision\n"
        "print(choose_precision('auto', torch.device('cpu')).name, torch.backends.cpu.get_cpu_capability())"
    )
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | older, capture_output=True, text=True, check=True
    ).stdout
    precision, capability = output.split()
    assert precision == "fp32"
    assert not capability.startswith("AVX512")


def _has_bf16() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_run_in_the_chosen_format(name: str, dtype: torch.dtype) -> None:
    matrix = torch.ones(4, 4)
    with choose_precision(name, CPU).autocast():  # type: ignore[arg-type]
        assert (matrix @ matrix).dtype == dtype


def test_fp32_is_fp32_inside_somebody_elses_autocast() -> None:
    matrix = torch.ones(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), choose_precision("fp32", CPU).autocast():
        assert (matrix @ matrix).dtype == torch.float32


def test_fp16_on_a_cpu_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="use auto, bf16 or fp32"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(("device", "format_of_products"), [("cuda", "high"), ("cpu", "highest")])
def test_fp32_products_may_be_tf32_on_cuda_and_nowhere_else(device: str, format_of_products: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        allow_tf32(torch.device(device))
        assert torch.get_float32_matmul_precision() == format_of_products
    finally:
        torch.set_float32_matmul_precision(before)
