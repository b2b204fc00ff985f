"""Device errors after which a process can no longer use its device: no retry helps, only a new process.

Every later call on the device fails, too, with the same error or another one, so the first error is the cause to tell.

Sources: CUDA Runtime API, section 6.36 (cudaError: "the process must be terminated and relaunched"); cuBLAS and NCCL
keep broken handles and communicators after these errors.
"""

import re

STICKY_CODES = {
    214: "uncorrectable ECC error",
    220: "uncorrectable NVLink error",
    700: "illegal memory access",
    702: "launch timed out",
    709: "context is destroyed",
    710: "device-side assert",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "invalid address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
}
"""Numbers of cudaError that destroy the context."""

_TEXTS = re.compile(
    r"CUDA error: (?:device-side assert triggered|an illegal memory access was encountered|misaligned address"
    r"|an illegal instruction was encountered|invalid program counter|unspecified launch failure|hardware stack error"
    r"|operation not supported on global/shared address space|uncorrectable ECC error encountered"
    r"|uncorrectable NVLink error detected during the execution|the launch timed out and was terminated"
    r"|context is destroyed)"
    r"|CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_(?:ALLOC_FAILED|EXECUTION_FAILED)"
    # NCCL: its communicator is unusable, whichever call ran out of memory.
    r"|Failed to CUDA (?:m|c)alloc|Cuda failure (?:2 )?'out of memory'|ncclUnhandledCudaError"
    r"|NCCL communicator was aborted"
)


def is_sticky(error: BaseException) -> bool:
    """True if the process that raised it can no longer use its device."""
    if getattr(error, "error_code", None) in STICKY_CODES:
        return True
    return isinstance(error, RuntimeError) and _TEXTS.search(str(error)) is not None
