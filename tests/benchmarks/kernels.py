"""Our attention, norm and vocabulary head against those of plain torch, forward and backward, in turn.

    python tests/benchmarks/kernels.py [--quick] [--threads N]

Each kernel is measured at the shapes of small models, in bf16 where the processor multiplies it natively, else in fp32;
the residual stream, which the norms read, is fp32 in both. Ours and torch's alternate; figures are medians over the
rounds, and the ratio, the median of each round's own, is our time over torch's: below 1, ours is faster. Memory is the
peak of live tensors above inputs and gradients that are there, ours over torch's. Both keep freed memory in the process
(core/memory/malloc_tuning.py), so that no page faults are counted against torch. One thread unless told otherwise:
processor time is measured then, which a busy machine leaves alone.

attention: core/layers/cpu_attention.py against F.scaled_dot_product_attention, on a joint tensor of queries, keys and
values, the rotation of a decoder with it. The rows in fp32 check a rule: there models use torch's.
norm: core/layers/rms_norm.py against F.rms_norm.
head: core/step/vocabulary_head.py against F.linear and F.cross_entropy of fp32 logits, the matrix's gradient added to
one that is there.

Fails if ours and torch's results differ. The last line is JSON.

--quick: an eighth of the rows, two rounds, below a minute. Otherwise some three minutes on a core of its own.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.layers.cpu_attention import fused_attention
from core.layers.rms_norm import RMSNorm
from core.layers.transformer_parts import document_mask, positions_in_documents, rotary_tables, rotate
from core.memory.malloc_tuning import keep_freed_memory
from core.memory.memory_limit import memory_limit
from core.memory.storage_meter import StorageMeter
from core.settings.precision import Precision, choose_precision
from core.step.holdout_masks import MASKING_RATE
from core.step.step_profile import StepProfile
from core.step.vocabulary_head import add_head_gradients

CPU = torch.device("cpu")
ROUNDS, QUICK_ROUNDS = 11, 2
TOKENS_A_DOCUMENT = 128
"""In packed rows."""
EPSILON = 1e-6
MOST_APART = 0.02
"""Norm of the difference between ours and torch's results, over that of torch's: bf16 has 8 bits, and the two round in
other places. In fp32 they differ by a millionth."""

Work = Callable[[], Sequence[Tensor]]
"""One forward and backward pass; its results and gradients."""


@dataclass(frozen=True)
class Pair:
    """One kernel at one shape."""

    kernel: str
    shape: str
    inputs: Sequence[Tensor]
    ours: Work
    theirs: Work


@dataclass(frozen=True)
class Measured:
    """Medians of one pair."""

    ours_ms: float
    theirs_ms: float
    ratio: float
    memory_ratio: float


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Attention of one model."""

    name: str
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    is_causal: bool
    is_packed: bool = False


_BERT_128 = Heads(name="RoBERTa form, length 128", tokens=128, heads=12, kv_heads=12, head_dim=64, is_causal=False)
_BERT_256 = Heads(name="RoBERTa form, length 256", tokens=256, heads=6, kv_heads=6, head_dim=64, is_causal=False)
_LLAMA = Heads(name="Llama form, length 512", tokens=512, heads=8, kv_heads=2, head_dim=64, is_causal=True)
_PACKED = Heads(
    name="Llama form, 512, packed", tokens=512, heads=8, kv_heads=2, head_dim=64, is_causal=True, is_packed=True
)
_NORMS = ((16, 128, 768), (16, 512, 512), (16, 256, 256))
"""Rows, tokens, width."""
_HEADS = (
    ("768 to 52,000, masked", round(16 * 128 * MASKING_RATE), 768, 52_000),
    ("384 to 65,541, masked", round(16 * 256 * MASKING_RATE), 384, 65_541),
    ("512 to 6,400, causal", 16 * 512, 512, 6_400),
)
"""Name, positions that predict, features, vocabulary."""


def pairs(precision: Precision, num_rows: int) -> Iterator[Pair]:
    """All kernels at all shapes, one after another, for the memory of one at a time."""
    for shape in (_BERT_128, _BERT_256, _LLAMA, _PACKED):
        yield attention(shape, precision.dtype, num_rows)
    if precision.dtype != torch.float32:
        for shape in (_BERT_128, _LLAMA):
            yield attention(shape, torch.float32, num_rows)
    for rows, tokens, width in _NORMS:
        yield norm(rows * num_rows // 16, tokens, width)
    for name, positions, features, vocabulary in _HEADS:
        yield head(name, positions * num_rows // 16, features, vocabulary, precision)


def attention(shape: Heads, dtype: torch.dtype, num_rows: int) -> Pair:
    """Attention over a joint tensor, as the layers call it and as plain torch would."""
    heads, kv_heads = shape.heads, shape.kv_heads
    qkv = torch.randn(num_rows, shape.tokens, heads + 2 * kv_heads, shape.head_dim).to(dtype).requires_grad_()
    gradient = torch.randn(num_rows, shape.tokens, heads, shape.head_dim).to(dtype)
    mask, rotary = None, None
    if shape.is_causal:
        positions = torch.arange(shape.tokens)
        if shape.is_packed:
            documents = (torch.rand(num_rows, shape.tokens) < 1 / TOKENS_A_DOCUMENT).cumsum(1)
            positions, mask = positions_in_documents(documents), document_mask(documents, is_causal=True, dtype=dtype)
        rotary = rotary_tables(positions, head_dim=shape.head_dim, base=10_000.0, dtype=dtype)

    def ours() -> Sequence[Tensor]:
        out = fused_attention(
            qkv, heads=heads, kv_heads=kv_heads, mask=mask, rotary=rotary, is_causal=shape.is_causal
        )  # fmt: skip
        return out.detach(), *torch.autograd.grad(out, qkv, gradient)

    def theirs() -> Sequence[Tensor]:
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], dim=2)
        q, k = torch.split(qk if rotary is None else rotate(qk, rotary), [heads, kv_heads], dim=2)
        out = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (q, k, v)),
            attn_mask=mask,
            is_causal=shape.is_causal and mask is None,
            enable_gqa=heads != kv_heads,
        ).transpose(1, 2)
        return out.detach(), *torch.autograd.grad(out, qkv, gradient)

    number_format = "fp32" if dtype == torch.float32 else str(dtype).removeprefix("torch.").replace("bfloat", "bf")
    return Pair("attention", f"{shape.name}, {number_format}", [qkv, gradient], ours, theirs)


def norm(num_rows: int, tokens: int, width: int) -> Pair:
    """The norm of a residual stream."""
    module = RMSNorm(width, EPSILON)
    stream = torch.randn(num_rows, tokens, width, requires_grad=True)
    gradient = torch.randn(num_rows, tokens, width)

    def passed(out: Tensor) -> Sequence[Tensor]:
        return out.detach(), *torch.autograd.grad(out, (stream, module.weight), gradient)

    return Pair(
        "norm",
        f"{num_rows} x {tokens} x {width}, fp32",
        [stream, gradient],
        lambda: passed(module(stream)),
        lambda: passed(F.rms_norm(stream, (width,), module.weight, EPSILON)),
    )


def head(name: str, num_positions: int, num_features: int, vocabulary: int, precision: Precision) -> Pair:
    """Loss and gradients of a vocabulary matrix with a bias."""
    features = torch.randn(num_positions, num_features, dtype=precision.dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (num_positions,))
    our_matrix, their_matrix = (_parameter(vocabulary, num_features) for _ in range(2))
    our_bias, their_bias = (torch.zeros(vocabulary, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        their_matrix.copy_(our_matrix)
    span = StepProfile(CPU).span

    def ours() -> Sequence[Tensor]:
        loss, gradient = add_head_gradients(
            features.detach(), our_matrix, our_bias, labels,
            dtype=precision.dtype, scale=1.0, positions_at_once=num_positions, span=span,
        )  # fmt: skip
        return loss, gradient, _gradient(our_matrix), _gradient(our_bias)

    def theirs() -> Sequence[Tensor]:
        features.grad = None
        with precision.autocast():
            logits = F.linear(features, their_matrix, their_bias)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        del logits
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), _gradient(features), _gradient(their_matrix), _gradient(their_bias)

    number_format = f"{num_positions} positions, {precision.name}"
    inputs = [features, our_matrix, their_matrix, our_bias, their_bias]
    return Pair("head", f"{name}, {number_format}", inputs, ours, theirs)


def _parameter(*shape: int) -> Tensor:
    return torch.empty(*shape).normal_(std=0.02).requires_grad_()


def _gradient(of: Tensor) -> Tensor:
    assert of.grad is not None
    return of.grad


def measure(pair: Pair, num_rounds: int) -> Measured:
    """Medians over rounds; memory of a pass that finds gradients there, as all micro-batches of a step but one do."""
    peaks, results = [], []
    for work in (pair.ours, pair.theirs):
        results.append([result.clone() for result in work()])
        with memory_limit(None, CPU) as meter:
            assert isinstance(meter, StorageMeter)
            meter.track(*pair.inputs, *(tensor.grad for tensor in pair.inputs if tensor.grad is not None))
            before = meter.current_bytes
            work()
            peaks.append(meter.peak_bytes - before)
    for ours, theirs in zip(*results, strict=True):
        apart = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
        assert apart < MOST_APART, f"{pair.kernel}, {pair.shape}: {apart:.1%} apart"
    del results
    times: dict[Work, list[float]] = {pair.ours: [], pair.theirs: []}
    for number in range(num_rounds):
        for work in (pair.ours, pair.theirs) if number % 2 else (pair.theirs, pair.ours):
            began = clock()
            work()
            times[work].append(1000 * (clock() - began))
    our_times, their_times = times[pair.ours], times[pair.theirs]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(our_times, their_times, strict=True))
    return Measured(statistics.median(our_times), statistics.median(their_times), ratio, peaks[0] / peaks[1])


def clock() -> float:
    """Seconds; with one thread the processor's own, which do not run while others have the core."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows, two rounds")
    parser.add_argument("--threads", type=int, default=1, help="more than one: wall time is measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory(True)
    precision = choose_precision("auto", CPU)
    num_rows, num_rounds = (2, QUICK_ROUNDS) if arguments.quick else (16, ROUNDS)
    ratios: dict[str, float] = {}
    memory_ratios: dict[str, float] = {}
    print(f"{'kernel':<11}{'shape':<49}{'ours, ms':>10}{'torch, ms':>11}{'ratio':>8}{'memory':>9}")
    for pair in pairs(precision, num_rows):
        found = measure(pair, num_rounds)
        name = f"{pair.kernel}, {pair.shape}"
        ratios[name], memory_ratios[name] = round(found.ratio, 3), round(found.memory_ratio, 3)
        print(
            f"{pair.kernel:<11}{pair.shape:<49}{found.ours_ms:>10.2f}{found.theirs_ms:>11.2f}{found.ratio:>8.2f}"
            f"{found.memory_ratio:>9.2f}",
            flush=True,
        )
    line = {"benchmark": "kernels", "ratios": ratios, "memory_ratios": memory_ratios, "threads": arguments.threads}
    print(json.dumps(line | {"quick": arguments.quick}))


if __name__ == "__main__":
    main()
