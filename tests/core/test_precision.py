"""The number format that a setting means, against what the processor says of itself."""

from pathlib import Path

import pytest
import torch

from core.precision import allow_tf32, choose_precision, computes_bf16

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what its processor can do")
def test_auto_is_bf16_exactly_where_the_processor_multiplies_bf16() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    is_native = "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
    assert computes_bf16(CPU) == is_native
    assert choose_precision("auto", CPU).name == ("bf16" if is_native else "fp32")


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
