"""Memory that a training step frees stays with the process, so that the next step need not fault it in again.

glibc takes blocks over 32 MiB from the kernel one by one and gives each back the moment it is freed. A step on a
processor takes and frees a hundred such blocks and waits for each of their pages to be zeroed, 5 to 10 % of its time.
(Intel's guide to torch on processors has users preload another allocator for the same reason.)
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4

_LARGEST_INT = 2**31 - 1
_KEEPING = {_M_MMAP_MAX: 0, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: _LARGEST_INT}
_USUAL = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}
"""What glibc has arrived at by itself in any process that has freed one large block."""


@contextmanager
def freed_memory_stays() -> Iterator[None]:
    """Inside, freed memory waits in the process to be used again; at the end it goes back to the kernel.

    The most that the process takes grows by what lies between blocks, 0 to 4 % where it was measured. Other C libraries
    than glibc keep their own ways.
    """
    keep_freed_memory(True)
    try:
        yield
    finally:
        keep_freed_memory(False)
        libc = _glibc()
        if libc is not None:
            libc.malloc_trim(0)


def keep_freed_memory(keeps: bool) -> None:
    """Have the allocator keep what is freed from now on, or do with it as it usually does."""
    libc = _glibc()
    if libc is not None:
        for parameter, value in (_KEEPING if keeps else _USUAL).items():
            libc.mallopt(parameter, value)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
