"""Freed memory stays in the process while it is wanted, and goes back to the kernel after that; the kernel is asked."""

import multiprocessing
import os
import platform
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from core.memory.malloc_tuning import freed_memory_stays

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc (run on Debian or the like)")

NUM_BYTES = 5 * 2**23  # over the 32 MiB from which on glibc takes and gives back blocks one by one
NUM_PAGES = NUM_BYTES // os.sysconf("SC_PAGE_SIZE")


def in_a_process_of_its_own(check: Callable[[], None]) -> None:
    """What ran before in a process leaves holes in its heap, in which a large tensor may find room."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pool.submit(check).result()


def faults_of_a_large_tensor(num_bytes: int = NUM_BYTES) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(num_bytes // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_a_tensor_finds_the_pages_of_one_that_was_freed_and_not_before_it_is_wanted() -> None:
    in_a_process_of_its_own(check_that_pages_are_found_again_while_that_is_wanted)


def check_that_pages_are_found_again_while_that_is_wanted() -> None:
    faults_of_a_large_tensor()
    assert faults_of_a_large_tensor() > 0.9 * NUM_PAGES
    with freed_memory_stays():
        # The scraps before and after an aligned block go to glibc's cache of small ones, seven of a size, until which
        # the hole that it leaves is too small for another like it.
        faults = [faults_of_a_large_tensor() for _ in range(30)]
        assert max(faults[-5:]) < 0.1 * NUM_PAGES


def fail_with_memory_kept() -> None:
    before = resident_bytes()
    with freed_memory_stays():
        faults_of_a_large_tensor()
        assert resident_bytes() > before + 0.9 * NUM_BYTES
        raise RuntimeError("a trial failed")


@pytest.mark.long
def test_what_stayed_goes_back_at_the_end_also_after_a_failure() -> None:
    in_a_process_of_its_own(check_that_memory_goes_back)


def check_that_memory_goes_back() -> None:
    before = resident_bytes()
    with pytest.raises(RuntimeError, match="a trial failed"):
        fail_with_memory_kept()
    assert resident_bytes() < before + 0.5 * NUM_BYTES
    # The hole that was left has no room for twice the size; another of the same size might find it, as in any process.
    faults_of_a_large_tensor(2 * NUM_BYTES)
    assert faults_of_a_large_tensor(2 * NUM_BYTES) > 0.9 * 2 * NUM_PAGES
