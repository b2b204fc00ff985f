"""What is an out-of-memory error, and what it tells about the run.

Libraries report the same shortage as a dozen types and texts, and many texts that speak of memory are no shortage. So
the type decides first, then texts that only an allocator writes, and the text of a wrapper is never evidence: Ray's
message about a worker that vanished names the out-of-memory killer whatever the cause was. Classify in the worker:
`__cause__` does not survive the trip to another process.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

OomKind = Literal["device", "host", "node", "suspect"]
"""device: accelerator memory or its budget; a property of the configuration.
host: this process could not get host memory.
node: somebody ended the process for the node's sake; the culprit may be a neighbour, so nothing to learn about the run.
suspect: the process vanished or a library hid the cause. Not proof; treat as interrupted unless corroborated."""

OomPhase = Literal["forward", "backward", "optimizer", "exchange", "evaluation", "checkpoint"]

_STRENGTH: dict[OomKind, int] = {"device": 3, "host": 2, "node": 1, "suspect": 0}


@dataclass(frozen=True, slots=True)
class OomFacts:
    """What is known about one shortage of memory. Plain values, so that it pickles and crosses processes."""

    kind: OomKind
    error_type: str
    """Module and name of the exception that gave it away."""
    message: str
    """Its text, at most 400 characters."""
    bytes_asked: int | None = None
    """Size of the allocation that failed; None where the text does not say."""
    phase: OomPhase | None = None
    """Where in the run; None where the caller did not know."""
    rank: int | None = None
    """Worker that ran out; None for a single one or where nobody knows."""
    bytes_in_use: int | None = None
    """What that worker's tensors held when it asked; None where nobody counted."""

    @property
    def is_certain(self) -> bool:
        """Whether memory certainly ran out, rather than possibly."""
        return self.kind != "suspect"


def classify(exc: BaseException, *, phase: OomPhase | None = None, rank: int | None = None) -> OomFacts | None:
    """The strongest evidence of a memory shortage in an exception and in everything it wraps; None if there is none.

    Follows declared causes (`raise ... from`, Ray's wrappers, exception groups), not `__context__`: an error raised
    while handling a shortage is a different error.

    Args:
        phase: What the caller was doing; written into the facts.
        rank: The caller's rank; a wrapper that names the failing worker has the last word.
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
            return carried  # somebody nearer has classified already
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
        pending += [(inner, error_rank if named is None else named) for named, inner in _wrapped(error)]
    return strongest


def corroborated(facts: OomFacts, *, new_kernel_kills: int) -> OomFacts:
    """The facts after asking the kernel: a vanished process is a node's shortage if the kernel killed meanwhile.

    Args:
        new_kernel_kills: Growth of `host_memory.kernel_oom_kills()` over the life of the process that vanished.
    """
    if facts.kind == "suspect" and new_kernel_kills > 0:
        return replace(facts, kind="node")
    return facts


# Only texts that an allocator or a device library writes. The loose ones must begin a line, as they do when the library
# speaks itself, and not when somebody quotes it.
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
    """The verdict on one exception alone."""
    # Names instead of classes: core does without Ray, and torch's own types moved between modules over its versions.
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
    # Allocators raise these two types or torch's own; a subclass from elsewhere is somebody's words about memory.
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


def _wrapped(error: BaseException) -> Iterator[tuple[int | None, BaseException]]:
    """Exceptions inside an exception, with the rank that the wrapper names for each."""
    failures = getattr(error, "worker_failures", None)  # ray.train.WorkerGroupError: {rank: exception}
    if isinstance(failures, dict):
        for rank, inner in failures.items():
            if isinstance(inner, BaseException):
                yield rank, inner
    # RayTaskError.cause, ControllerError, WorkerHealthCheckFailedError
    kept = [getattr(error, name, None) for name in ("controller_failure", "health_check_failure", "cause", "__cause__")]
    if (type(error).__module__ or "").split(".")[0] == "ray":
        # Other wrappers of Ray's, UserExceptionWithTraceback for one, keep it under a name that they do not publish.
        kept += vars(error).values()
    for inner in kept:
        if isinstance(inner, BaseException):
            yield None, inner
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield None, inner


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
