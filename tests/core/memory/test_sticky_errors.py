"""Which errors end the process, by their texts and numbers, and that none of them hides behind its consequences."""

import pytest
import torch
from absent_workers import AbsentWorkers

from core.distributed.collective_attempt import attempt_together
from core.distributed.workers import Workers
from core.memory.memory_limit import memory_limit
from core.memory.sticky_errors import STICKY_CODES, is_sticky

STICKY = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: misaligned address",
    "CUDA error: unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
    "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error. Last error: Failed to CUDA calloc async 608 bytes",
    "NCCL error: ncclUnhandledCudaError: Cuda failure 2 'out of memory'",
)
HEALED_BY_LESS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.65 GiB",
    "CUDA error: out of memory",
    "CUDA error: invalid argument",
    "expected a matrix; the user wrote 'CUDA' somewhere",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes",
)


def the_device_is_broken(*_: object) -> int:
    raise RuntimeError("CUDA error: device-side assert triggered, again, from another place")


class BrokenWorkers(AbsentWorkers):
    def largest(self, value: int) -> int:
        return the_device_is_broken(value)


@pytest.mark.parametrize("text", STICKY)
def test_an_error_that_breaks_the_device_is_raised_as_it_was_though_all_later_calls_fail(text: str) -> None:
    first = RuntimeError(text)

    def work() -> None:
        raise first

    assert is_sticky(first)
    for workers in (Workers(), BrokenWorkers(count=2)):
        with pytest.raises(RuntimeError) as raised:
            attempt_together(
                work, workers, phase="forward", bytes_in_use=the_device_is_broken, settle=the_device_is_broken
            )
        assert raised.value is first


@pytest.mark.parametrize("text", HEALED_BY_LESS)
def test_an_error_that_less_memory_heals_does_not_end_the_process(text: str) -> None:
    assert not is_sticky(RuntimeError(text))
    assert not is_sticky(torch.OutOfMemoryError(text))


def test_the_number_of_an_error_counts_whatever_its_text() -> None:
    class AcceleratorError(RuntimeError):
        error_code = 0

    for number in range(1000):
        AcceleratorError.error_code = number
        assert is_sticky(AcceleratorError("CUDA error")) == (number in STICKY_CODES)


def test_the_end_of_a_memory_limit_does_not_hide_the_error_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    is_broken = False

    def fraction(*_: object) -> None:
        if is_broken:
            the_device_is_broken()

    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("max_memory_reserved", "memory_reserved", "get_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fraction)
    first = RuntimeError(STICKY[0])

    def break_within() -> None:
        nonlocal is_broken
        with memory_limit(None, torch.device("cuda", 0)):
            is_broken = True
            raise first

    with pytest.raises(RuntimeError) as raised:
        break_within()
    assert raised.value is first
