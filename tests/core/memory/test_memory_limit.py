"""The counting budget against torch's own record of CPU allocations, and its manners."""

import gc
import os
import subprocess
import sys
import time

import pytest
import torch
from recorded_memory import recorded_peak_bytes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from core.memory.memory_limit import memory_limit
from core.memory.out_of_memory import classify
from core.memory.tensor_memory import release_memory
from patience import HANGS_AFTER_S

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_and_step(num_steps: int = 2, foreach: bool = False, is_checkpointed: bool = False) -> None:
    """Everything from construction on, so that the record and the meter see the same things."""
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=foreach, fused=not foreach)
    for _ in range(num_steps):
        rows = torch.randn(128, 64)
        output = checkpoint(model, rows, use_reentrant=False) if is_checkpointed else model(rows)
        output.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


STEPS = {
    "first step": lambda: build_and_step(num_steps=1),
    "optimizer state appears": lambda: build_and_step(num_steps=2),
    "foreach temporaries": lambda: build_and_step(foreach=True),
    "recomputation": lambda: build_and_step(is_checkpointed=True),
    "views and in-place": lambda: torch.ones(100, 100).t()[3:].add_(1).reshape(-1),
    "a tensor that grows": lambda: torch.add(torch.ones(1000), 1, out=torch.empty(0)),
    "lists of tensors": lambda: torch._foreach_add([torch.ones(5000), torch.ones(500)], 1.0),
}


@pytest.mark.parametrize("action", STEPS.values(), ids=STEPS.keys())
def test_peak_equals_the_record_of_the_cpu_allocator(action):
    action()  # library state that appears on first use is nobody's tensor
    recorded_bytes = recorded_peak_bytes(action)
    with memory_limit(None, CPU) as meter:
        action()
    # What passes no operator is invisible: the random state that recomputation saves (5,056 bytes), scratch of kernels.
    assert recorded_bytes - 5056 <= meter.peak_bytes <= recorded_bytes
    assert meter.peak_bytes >= 0.995 * recorded_bytes


def test_activations_gradients_and_optimizer_state_all_count():
    model = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.ones(100, 100, requires_grad=True)
    weight_bytes = 100 * 100 * 4
    with memory_limit(None, CPU) as meter:
        meter.track(model, optimizer, rows)
        assert meter.current_bytes == 2 * weight_bytes
        kept = model(rows).exp()  # exp keeps its output; nothing of the matrix product is kept but inputs
        assert meter.current_bytes == 3 * weight_bytes
        kept.sum().backward()
        assert meter.current_bytes == 5 * weight_bytes + 0  # two gradients more
        del kept
        optimizer.step()
        assert meter.current_bytes == 6 * weight_bytes + 4  # two moments and a counter


def test_tracking_finds_gradients_and_state_of_before_once():
    model = nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    with memory_limit(None, CPU) as meter:
        meter.track(model, optimizer, list(model.parameters()))
        meter.track(model)
        assert meter.current_bytes == 4 * (100 * 100 + 100) * 4 + 2 * 4


def test_over_the_limit_the_error_says_memory_limit_with_all_three_numbers():
    with memory_limit(10_000, CPU) as meter:
        kept = torch.ones(2000)
        with pytest.raises(torch.OutOfMemoryError, match="Memory limit exceeded") as caught:
            torch.ones(1000)
        assert (kept.numel(), meter.current_bytes, meter.peak_bytes) == (2000, 8000, 8000)
    facts = classify(caught.value)
    assert (facts.kind, facts.bytes_asked) == ("device", 4000)
    assert "8000 of 10000 bytes" in facts.message


def test_the_budget_is_exact_to_the_byte():
    with memory_limit(None, CPU) as meter:
        build_and_step()
    with memory_limit(meter.peak_bytes, CPU):
        build_and_step()
    with pytest.raises(torch.OutOfMemoryError), memory_limit(meter.peak_bytes - 1, CPU):
        build_and_step()


def test_after_a_shortage_the_level_of_before_returns_to_the_byte():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    with memory_limit(1_000_000, CPU) as meter:
        meter.track(model)
        before_bytes = meter.current_bytes
        with pytest.raises(torch.OutOfMemoryError):
            model(torch.ones(2000, 64)).sum().backward()
        gc.collect()
        model.zero_grad()
        assert meter.current_bytes == before_bytes


def test_gradients_of_a_backward_pass_that_broke_off_are_given_back():
    # Autograd keeps them in its queue until the next backward pass.
    leaf = torch.ones(10_000, requires_grad=True)
    with memory_limit(None, CPU) as meter:
        before_bytes = meter.current_bytes
        branches = [torch.sin(leaf), torch.cos(leaf), torch.exp(leaf)]
        loss = sum((branch.square().sum() for branch in branches), start=torch.zeros(()))
        meter.budget_bytes = meter.current_bytes + 3 * leaf.nbytes
        with pytest.raises(torch.OutOfMemoryError):
            loss.backward()
        leaf.grad = None
        del branches, loss
        meter.budget_bytes = None
        assert meter.current_bytes > before_bytes
        release_memory(CPU)
        assert meter.current_bytes == before_bytes


def test_stopping_early_ends_the_limit_and_keeps_the_figures():
    with memory_limit(10_000, CPU) as meter:
        kept = torch.ones(1000)
        meter.stop()
        torch.ones(100_000)
        del kept
        assert (meter.peak_bytes, meter.current_bytes) == (4000, 4000)
        meter.stop()
    assert torch.ones(100_000).numel() == 100_000


def test_stopping_below_another_mode_leaves_that_mode_alone():
    with memory_limit(10_000, CPU) as meter, FakeTensorMode():
        meter.stop()
        assert type(torch.ones(100_000)).__name__ == "FakeTensor"
    assert type(torch.ones(100_000)) is torch.Tensor


def test_limits_nest_and_each_holds():
    with memory_limit(8000, CPU) as outer, memory_limit(4000, CPU) as inner:
        kept = torch.ones(1000)
        with pytest.raises(torch.OutOfMemoryError, match="4000 of 4000"):
            torch.ones(1)
        assert outer.current_bytes == inner.current_bytes == 4 * kept.numel()


def test_an_error_in_the_block_passes_and_ends_the_limit():
    with pytest.raises(KeyError), memory_limit(10, CPU):
        raise KeyError
    torch.ones(1000)


@pytest.mark.parametrize("limit_bytes", [0, -5])
def test_a_limit_below_one_byte_is_refused(limit_bytes):
    with pytest.raises(ValueError, match="at least one byte"), memory_limit(limit_bytes, CPU):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device (run on a machine with a GPU)")
def test_on_cuda_the_allocator_itself_refuses_and_the_limit_ends_with_the_block():
    device = torch.device("cuda", 0)
    torch.ones(1, device=device)
    with memory_limit(256 * 2**20, device) as meter:
        kept = torch.ones(2**20, device=device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(2**28, device=device)
        assert meter.peak_bytes >= kept.nbytes
    torch.ones(2**28, device=device)


KERNEL_REFUSES = """
import torch
from core.memory.memory_limit import process_limit
torch.ones(1000)
with process_limit(64 * 2**20):
    torch.empty(2**20)
    try:
        torch.empty(2**28)
        print("allocated")
    except RuntimeError as error:
        print("refused")
torch.empty(2**28)
print("free again")
"""


@pytest.mark.long
def test_the_process_limit_makes_the_kernel_refuse_and_ends_with_its_block():
    output = subprocess.run(
        [sys.executable, "-c", KERNEL_REFUSES],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANGS_AFTER_S,
    ).stdout
    assert output.split("\n")[:2] == ["refused", "free again"]


STARVED_RUN = """
import sys
sys.path[:0] = {paths!r}
import tempfile
from pathlib import Path
import torch
from core.training.training_run import run_training
from core.distributed.workers import Workers
from small_corpus import small_corpus
from small_runs import small_run
torch.set_num_threads(1)
run = small_run(batch_size=64, micro_batch_size=64, tokens=2 * 64 * 64).with_overrides(
    {{"model.width": 256, "model.layers": 2, "model.heads": 4, "model.sequence_length": 64}})
def train(limit_bytes):
    return run_training(run, small_corpus(sequence_length=64), workers=Workers(), folder=Path(tempfile.mkdtemp()),
        report=lambda _: True, evaluate_at_tokens=[], memory_limit_bytes=limit_bytes, memory_limit_by="rlimit")
free = train(None)
starved = train(free.peak_memory_bytes // 2)
print(free.outcome, free.micro_batch_size_used)
print(starved.outcome, starved.micro_batch_size_used, [s.facts.kind for s in starved.oom_events])
print(abs(free.metrics["holdout/loss_nats_per_token"] - starved.metrics["holdout/loss_nats_per_token"]) < 1e-3)
"""


@pytest.mark.slow
def test_a_run_that_the_kernel_refuses_memory_goes_on_with_smaller_micro_batches():
    output = subprocess.run(
        [sys.executable, "-c", STARVED_RUN.format(paths=sys.path)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_AFTER_S,
    )
    free, starved, is_same = output.stdout.splitlines() or [output.stderr] * 3
    assert free == "completed 64", output.stderr
    outcome, size, kinds = starved.split(maxsplit=2)
    assert outcome == "completed"
    assert int(size) < 64
    assert "'host'" in kinds
    assert is_same == "True"


@pytest.mark.slow
def test_counting_costs_less_than_a_fifth_of_a_small_training_step():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256)) for _ in range(12)])
    rows = torch.randn(512, 256)

    def seconds(num_steps: int = 2) -> float:
        """Of the processor, on one thread: other work beside takes none of them."""
        started_at = time.process_time()
        for _ in range(num_steps):
            model(rows).sum().backward()
        return time.process_time() - started_at

    seconds()
    plain_s, counted_s = [], []
    # Short stretches and many of them: other work beside empties the caches, and leaves some alone.
    for _ in range(50):
        plain_s.append(seconds())
        with memory_limit(2**34, CPU):
            counted_s.append(seconds())
    assert min(counted_s) < 1.2 * min(plain_s), (counted_s, plain_s)
