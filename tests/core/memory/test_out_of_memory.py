"""Every form in which memory runs out, provoked where a CPU can; and texts about memory that are no shortage."""

import errno
import mmap
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, RayTaskError, WorkerCrashedError
from ray.exceptions import OutOfMemoryError as NodeOutOfMemoryError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from core.memory.memory_limit import memory_limit
from core.memory.out_of_memory import OomFacts, classify, corroborated
from patience import HANGS_AFTER_S

FAR_TOO_MUCH = 1 << 50


def raised_by(action) -> BaseException:
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def allocate_over_budget() -> None:
    with memory_limit(1000, torch.device("cpu")):
        torch.ones(1000)


def fail_because_of_memory() -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("could not load the block") from error


def fail_after_recovering() -> None:
    try:
        raise MemoryError
    except MemoryError:
        raise ValueError("an unrelated bug while recovering")  # noqa: B904


PROVOKED = {
    "torch, host memory": (lambda: torch.empty(FAR_TOO_MUCH), "host", 4 * FAR_TOO_MUCH),
    "torch, counted budget": (allocate_over_budget, "device", 4000),
    "numpy": (lambda: np.empty(FAR_TOO_MUCH, np.uint8), "host", FAR_TOO_MUCH),
    "Python": (lambda: bytearray(FAR_TOO_MUCH), "host", None),
    "the kernel, as an OSError": (lambda: mmap.mmap(-1, FAR_TOO_MUCH), "host", None),
    "a declared cause": (fail_because_of_memory, "host", None),
}


@pytest.mark.parametrize(("action", "kind", "bytes_asked"), PROVOKED.values(), ids=PROVOKED.keys())
def test_a_provoked_shortage_is_recognised_with_the_bytes_asked_for(action, kind, bytes_asked):
    facts = classify(raised_by(action))
    assert (facts.kind, facts.bytes_asked, facts.is_certain) == (kind, bytes_asked, True)


DEVICE_TEXTS = [
    ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which", 2 << 30),
    ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call", None),
    ("HIP out of memory. Tried to allocate 20.00 MiB", 20 << 20),
    ("MPS backend out of memory (MPS allocated: 8.00 GB). Tried to allocate 256 bytes on private pool.", 256),
    ("XPU out of memory. Tried to allocate 1.50 KiB", 1536),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", None),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", None),
    ("cuFFT error: CUFFT_ALLOC_FAILED", None),
    (
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
        "per_process_memory_fraction limit. Requested size: 1024 bytes",
        1024,
    ),
    (
        "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'",
        None,
    ),
    ("NCCL error in: NCCLUtils.cpp:77\nLast error:\nFailed to CUDA calloc async 6291456 bytes", 6291456),
    (
        "Caught RuntimeError in pin memory thread for device 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: CUDA error: out of memory",
        None,
    ),
]


@pytest.mark.parametrize(("text", "bytes_asked"), DEVICE_TEXTS)
def test_device_libraries_are_understood(text, bytes_asked):
    facts = classify(RuntimeError(text))
    assert (facts.kind, facts.bytes_asked) == ("device", bytes_asked)


def test_torch_types_for_the_device_are_understood_whatever_their_text():
    assert classify(torch.OutOfMemoryError("anything")).kind == "device"
    assert classify(torch.cuda.OutOfMemoryError("anything")).kind == "device"
    asynchronous = torch.AcceleratorError("CUDA error")
    asynchronous.error_code = 2
    assert classify(asynchronous).kind == "device"
    asynchronous.error_code = 710
    assert classify(asynchronous) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("std::bad_alloc"), "host"),
        (RuntimeError("could not create a memory object"), "host"),
        (
            RuntimeError("unable to mmap 68719476736 bytes from file </dev/shm/torch>: Cannot allocate memory (12)"),
            "host",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
        (RuntimeError("could not create a primitive"), "suspect"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "suspect"),
        (RuntimeError("DataLoader worker (pid(s) 77) is killed by signal: Killed. "), "suspect"),
        (ExceptionGroup("two workers", [ValueError("x"), MemoryError()]), "host"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_host_libraries_are_understood(error, kind):
    assert classify(error).kind == kind


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        ValueError("out of memory"),
        RuntimeError("the memory layer is out of memory slots: 1024 entries, asked for 2048"),
        RuntimeError("worker 3 said: CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("could not create a primitive descriptor for the matmul primitive"),
        type("MemoryBudgetError", (RuntimeError,), {})("CUDA out of memory"),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        raised_by(fail_after_recovering),
        WorkerGroupError("m: CUDA out of memory in a log line", {0: RuntimeError("shape mismatch")}),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:50]}",
)
def test_a_text_that_speaks_of_memory_is_not_taken_for_a_shortage(error):
    assert classify(error) is None


RAY_FORMS = {
    "memory monitor": (
        NodeOutOfMemoryError("4 worker(s) were killed due to the node running low on memory"),
        "node",
        None,
    ),
    "worker group, rank 1": (
        WorkerGroupError(
            "m",
            {
                0: RuntimeError("Connection closed by peer"),
                1: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
            },
        ),
        "device",
        1,
    ),
    "health check, rank 3": (
        WorkerGroupError("m", {3: WorkerHealthCheckFailedError("A worker", NodeOutOfMemoryError("node running low"))}),
        "node",
        3,
    ),
    "vanished, though Ray's text names the killer": (
        WorkerGroupError("m", {0: WorkerHealthCheckFailedError("x: killed by the OOM killer", ActorDiedError())}),
        "suspect",
        0,
    ),
    "crashed worker": (WorkerCrashedError(), "suspect", None),
    "controller": (ControllerError(RuntimeError("CUDA error: out of memory")), "device", None),
    "user exception with traceback": (UserExceptionWithTraceback(MemoryError(), "traceback"), "host", None),
    "task error": (
        RayTaskError("train", "traceback", torch.OutOfMemoryError("CUDA out of memory")),
        "device",
        None,
    ),
    "through Tune": (
        RayTaskError("train", "traceback", WorkerGroupError("m", {1: torch.OutOfMemoryError("CUDA out of memory")})),
        "device",
        1,
    ),
}


@pytest.mark.parametrize(("error", "kind", "rank"), RAY_FORMS.values(), ids=RAY_FORMS.keys())
def test_rays_wrappers_are_looked_into_before_and_after_the_trip_to_another_process(error, kind, rank):
    for form in (error, pickle.loads(pickle.dumps(error))):
        facts = classify(form)
        assert (facts.kind, facts.rank) == (kind, rank)


def test_the_two_faced_exception_of_ray_get_is_looked_into():
    # Its class is made for the occasion: a RayTaskError that is also the type of its cause.
    two_faced = RayTaskError("train", "traceback", RuntimeError("CUDA error: out of memory")).as_instanceof_cause()
    assert isinstance(two_faced, RuntimeError)
    assert classify(two_faced).kind == "device"
    bug = RayTaskError("train", "CUDA error: out of memory", RuntimeError("shape mismatch")).as_instanceof_cause()
    assert classify(bug) is None


def test_facts_carry_phase_and_rank_of_the_caller_and_pickle():
    facts = classify(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"), phase="backward", rank=1)
    assert facts == OomFacts(
        kind="device",
        error_type="torch.OutOfMemoryError",
        message="CUDA out of memory. Tried to allocate 2.00 MiB",
        bytes_asked=2 << 20,
        phase="backward",
        rank=1,
    )
    assert pickle.loads(pickle.dumps(facts)) == facts


def test_the_strongest_evidence_wins_over_its_consequences():
    consequences = WorkerGroupError("m", {0: ActorDiedError(), 1: MemoryError(), 2: torch.OutOfMemoryError("x")})
    assert (classify(consequences).kind, classify(consequences).rank) == ("device", 2)


def test_an_exception_that_wraps_itself_ends():
    error = RuntimeError("shape mismatch")
    error.cause = error
    assert classify(error) is None


def test_a_vanished_process_is_memory_only_if_the_kernel_killed_meanwhile():
    vanished = classify(ActorDiedError())
    assert not vanished.is_certain
    assert corroborated(vanished, new_kernel_kills=0) == vanished
    assert corroborated(vanished, new_kernel_kills=1).kind == "node"
    assert corroborated(classify(MemoryError()), new_kernel_kills=1).kind == "host"


REAL_SHORTAGE = """
import gc, sys, torch
from core.memory.memory_limit import process_limit
from core.memory.out_of_memory import classify
torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[1]))
model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(6)])
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)

def step(rows):
    loss = model(torch.randn(rows, 256)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

step(64)
kinds = []
for megabytes in (4, 8, 24):
    with process_limit(megabytes * 2**20):
        try:
            rows = 64
            while True:
                step(rows)
                rows *= 2
        except Exception as error:
            facts = classify(error)
            kinds.append("missed: " + repr(error) if facts is None else facts.kind)
    gc.collect()
print(",".join(kinds))
"""


@pytest.mark.long
def test_real_shortage_in_a_training_step_is_always_recognised():
    # The kernel refuses memory of the process itself (RLIMIT_DATA); nothing is counted or constructed here.
    output = subprocess.run(
        [sys.executable, "-c", REAL_SHORTAGE, "0"],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANGS_AFTER_S,
    ).stdout.strip()
    kinds = output.split(",")
    assert len(kinds) == 3
    assert set(kinds) <= {"host", "suspect"}, output
    assert "host" in kinds, output


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_a_suspect_and_no_proof():
    killed = ray.remote(max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    facts = classify(raised_by(lambda: ray.get(killed.remote())))
    assert (facts.kind, facts.is_certain) == ("suspect", False)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_shortage_in_a_remote_task_keeps_kind_and_bytes():
    @ray.remote(max_retries=0)
    def train() -> None:
        with memory_limit(1000, torch.device("cpu")):
            torch.ones(1000)

    facts = classify(raised_by(lambda: ray.get(train.remote())))
    assert (facts.kind, facts.bytes_asked) == ("device", 4000)


@pytest.mark.ray
@pytest.mark.slow
def test_the_memory_monitor_of_ray_is_a_fact_about_the_node():
    output = subprocess.run(
        [sys.executable, "-c", MONITORED],
        env={**os.environ, "RAY_memory_usage_threshold": "0.0", "RAY_memory_monitor_refresh_ms": "50"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_AFTER_S,
    )
    assert output.stdout.strip().endswith("node True"), output.stdout + output.stderr[-2000:]


# The threshold is below what the node uses anyway, so the monitor ends the first worker that it finds.
MONITORED = """
import time
import ray
from core.memory.out_of_memory import classify
ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
try:
    ray.get(ray.remote(max_retries=0)(lambda: time.sleep(600)).remote(), timeout=600)
except Exception as error:
    facts = classify(error)
    print(facts.kind, facts.is_certain)
"""
