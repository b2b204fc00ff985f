"""Classify exceptions: is it an out-of-memory error, and of which kind?

Libraries report the same condition with a dozen types and texts, and many texts that mention memory have another
cause. The type is checked first, then texts that only allocators write. The text of a wrapper is never evidence: Ray's
message about a vanished worker mentions the out-of-memory killer for every cause. Classify in the worker, because
`__cause__` is lost between processes.
"""

import errno
import re
from dataclasses import dataclass, replace
from typing import Literal

from data_pipeline.schema.wrapped_errors import wrapped_errors

OomKind = Literal["device", "host", "node", "suspect"]
"""device: accelerator memory or the memory limit; a property of the configuration.
host: this process could not allocate host memory.
node: the process was killed to protect the node; another process may be the cause, so it is no evidence about the run.
suspect: the process vanished or a library hid the cause; no proof. Treat it as interrupted unless corroborated."""

OomPhase = Literal["forward", "backward", "optimizer", "exchange", "evaluation", "checkpoint"]

_STRENGTH: dict[OomKind, int] = {"device": 3, "host": 2, "node": 1, "suspect": 0}


@dataclass(frozen=True, slots=True)
class OomFacts:
    """The known facts of one out-of-memory error. Plain values, so it pickles."""

    kind: OomKind
    error_type: str
    """Module and name of the exception."""
    message: str
    """Text of the exception, at most 400 characters."""
    bytes_asked: int | None = None
    """Size of the allocation that failed; None if the text does not contain it."""
    phase: OomPhase | None = None
    """Phase of the run; None if unknown."""
    rank: int | None = None
    """Rank of the worker that ran out of memory; None if unknown."""
    bytes_in_use: int | None = None
    """Bytes held by the tensors of that worker at the failed allocation; None if they were not counted."""

    @property
    def is_certain(self) -> bool:
        """True if memory certainly ran out; False for a suspect."""
        return self.kind != "suspect"


def classify(exc: BaseException, *, phase: OomPhase | None = None, rank: int | None = None) -> OomFacts | None:
    """The strongest evidence of an out-of-memory error in an exception and all it wraps; None if there is none.

    Follows declared causes (`raise ... from`, Ray's wrappers, exception groups), not `__context__`: an error raised
    while handling an out-of-memory error is a different error.

    Args:
        phase: Phase of the run, copied into the facts.
        rank: Rank of the caller; the rank named by a wrapper takes precedence.
    """
    strongest: OomFacts | None = None
    pending: list[tuple[BaseException, int | None]] = [(exc, rank)]
    seen: set[int] = set()
    while pending:
        error, error_rank = pending.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        carried = getattr(error, "facts", None)
        if isinstance(carried, OomFacts):
            return carried  # Already classified closer to the cause.
        kind = _kind_of(error)
        if kind is not None and (strongest is None or _STRENGTH[kind] > _STRENGTH[strongest.kind]):
            strongest = OomFacts(
                kind=kind,
                error_type=f"{type(error).__module__}.{type(error).__qualname__}",
                message=str(error)[:400],
                bytes_asked=_bytes_asked(str(error)),
                phase=phase,
                rank=error_rank,
            )
        pending += [(inner, error_rank if named is None else named) for named, inner in wrapped_errors(error)]
    return strongest


def corroborated(facts: OomFacts, *, new_kernel_kills: int) -> OomFacts:
    """The facts, with kind `node` instead of `suspect` if the kernel killed processes for memory meanwhile.

    Args:
        new_kernel_kills: Growth of `host_memory.kernel_oom_kills()` during the life of the vanished process.
    """
    if facts.kind == "suspect" and new_kernel_kills > 0:
        return replace(facts, kind="node")
    return facts


# Only texts that an allocator or a device library writes. Unspecific ones must begin a line: quotations of them do not.
_DEVICE_TEXT = re.compile(
    r"^(?:[\w.]*Error: )?(?:CUDA|HIP|XPU|NPU|MPS backend) out of memory"
    r"|^(?:[\w.]*Error: )?(?:CUDA|HIP|XPU|NPU) error: (?:out of memory|memory allocation)"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|HIPBLAS_STATUS_ALLOC_FAILED"
    r"|Not enough memory for workspace|would exceed per_process_memory_fraction"
    r"|Failed to CUDA (?:m|c)alloc|Cuda failure (?:2 )?'out of memory'",
    re.MULTILINE,
)
_HOST_TEXT = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"
    r"|^(?:[\w.]*Error: )?(?:std::bad_alloc|bad allocation)\b"
    r"|^(?:[\w.]*Error: )?could not create a memory object"
    r"|unable to mmap \d+ bytes|malloc of size \d+ failed|\[Errno 12\] Cannot allocate memory"
    r"|^(?:[\w.]*Error: )?Unable to allocate [\d.]+ .iB",
    re.MULTILINE,
)
_SUSPECT_TEXT = re.compile(
    r"CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR)"
    r"|could not (?:create|execute) a primitive(?! descriptor)"
    r"|DataLoader worker \(pid.{0,60}\) is killed by signal: Killed"
)
_CUDA_ERROR_MEMORY_ALLOCATION = 2


def _kind_of(error: BaseException) -> OomKind | None:
    """Kind of one exception, without its causes."""
    # Names instead of classes: core does not import Ray, and torch moved its types between modules.
    names = {f"{(cls.__module__ or '').split('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    if "ray.OutOfMemoryError" in names:
        return "node"
    if "torch.OutOfMemoryError" in names:
        return "device"
    if "torch.AcceleratorError" in names and getattr(error, "error_code", None) == _CUDA_ERROR_MEMORY_ALLOCATION:
        return "device"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "host"
    if names & {"ray.ActorDiedError", "ray.WorkerCrashedError", "ray.LocalRayletDiedError", "ray.NodeDiedError"}:
        return "suspect"
    if names & {"ray.RayError", "ray.RayTrainError"}:
        return None
    # Allocators raise exactly these types or torch's own; the text of any other subclass is no evidence.
    if type(error) in (RuntimeError, SystemError) or (
        isinstance(error, RuntimeError) and (type(error).__module__ or "").split(".")[0] == "torch"
    ):
        return _kind_of_text(str(error))
    return None


def _kind_of_text(text: str) -> OomKind | None:
    if _DEVICE_TEXT.search(text):
        return "device"
    if _HOST_TEXT.search(text):
        return "host"
    if _SUSPECT_TEXT.search(text):
        return "suspect"
    return None


_ASKED = re.compile(
    r"(?:tried to allocate|requested size:?|unable to allocate|unable to mmap|malloc of size|calloc async)"
    r"\s+([\d.]+)\s*(bytes|[KMGTPE]i?B)?",
    re.IGNORECASE,
)
_UNIT_BYTES = {"bytes": 1} | {
    f"{prefix}{unit}": base ** (power + 1)
    for power, prefix in enumerate("kmgtpe")
    for unit, base in (("ib", 1024), ("b", 1000))
}


def _bytes_asked(text: str) -> int | None:
    match = _ASKED.search(text)
    if match is None:
        return None
    return int(float(match[1].rstrip(".")) * _UNIT_BYTES[(match[2] or "bytes").lower()])
