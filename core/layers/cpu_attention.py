"""Attention for CPUs: batched matrix products on blocks of scores that stay in the cache.

torch's flash kernel for CPUs is written for fp32; in bf16, and for the short rows of small models, it reaches a tenth
of the speed of a matrix product. Here scores are computed, used and discarded block by block; the backward pass
recomputes them from queries and keys. Only the joint qkv tensor is kept, which is less than the flash kernel keeps.

`python tests/benchmarks/kernels.py`: 0.43 to 0.74 of the time of torch's attention in bf16, forward and backward.

Shape suffixes: B rows, T tokens a row, H heads, G key/value heads, R = H / G queries that share a key, N = H + 2 G,
K width of a head, S keys that a block of queries can see, Q queries of a block times R.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.layers.cache_blocks import blocks
from core.torch_internals.unlisted_kernels import softmax_gradient

_SCORES_AT_ONCE = 2**20
"""2 MiB in bf16: with gradients and copies it fits roughly in a core's own cache."""

_QUERIES_AT_ONCE = 64
"""Tokens per block of causal attention; keys after a block are never read."""


Rehearsal = Callable[[Hashable, Callable[[], Tensor]], Tensor]
"""(key that determines the memory of the work, the work) to a tensor like its result, without values."""

_REHEARSAL: ContextVar[Rehearsal | None] = ContextVar("cpu_attention_rehearsal", default=None)


def rotate(x: Tensor, turning: "_Turning", out: Tensor, *, back: bool = False) -> Tensor:
    """Rotate the pairs (i, i + K/2) of the last dimension by the angles of `turning` into `out`.

    Args:
        back: Rotate in the opposite direction.
    """
    cos, signed_sin = turning
    crosswise = torch.roll(x, x.shape[-1] // 2, dims=-1).mul_(signed_sin)
    torch.mul(x, cos, out=out)
    return out.sub_(crosswise) if back else out.add_(crosswise)


def fused_attention(
    qkv_BTNK: Tensor,
    *,
    heads: int,
    kv_heads: int,
    mask: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    is_causal: bool = False,
) -> Tensor:
    """(B, T, H, K) attention over a joint tensor of queries, keys and values, in this order along N. Differentiable.

    Args:
        mask: (B, 1, T or 1, T), added to the scores; finite. With `is_causal` it must also hide later tokens.
        rotary: Cosine and sine, (T, 1, K/2) or (B, T, 1, K/2); queries and keys are rotated first.
    """
    cos, sin = rotary or (None, None)
    # Everything already has the dtype of qkv, so disable autocast.
    with torch.autocast(qkv_BTNK.device.type, enabled=False):
        out_BTHK: Tensor = _FusedAttention.apply(  # type: ignore[no-untyped-call]
            qkv_BTNK, mask, cos, sin, is_causal, heads, kv_heads
        )
    return out_BTHK


@contextmanager
def rehearsed(rehearsal: Rehearsal) -> Iterator[None]:
    """Context in which `rehearsal` replaces the work of attention, to predict memory; values are wrong."""
    token = _REHEARSAL.set(rehearsal)
    try:
        yield
    finally:
        _REHEARSAL.reset(token)


def _work(name: str, work: Callable[[], Tensor], *arguments: Any) -> Tensor:
    """The result of the work, or of its rehearsal."""
    rehearsal = _REHEARSAL.get()
    if rehearsal is None:
        return work()
    forms = tuple((a.shape, a.dtype) if isinstance(a, Tensor) else a for a in arguments)
    return rehearsal((name, *forms), work)


class _Turning(NamedTuple):
    """Rotary tables expanded to the width of the rotated tensors, so that a product is one pass through memory; over
    half heads it would be a loop per eight numbers. Shapes (T, M, K) or (B, T, M, K) for M rotated heads."""

    cos: Tensor
    signed_sin: Tensor
    """Sine, negated in the first half."""


class _Shape(NamedTuple):
    """Number of query heads and key/value heads in N."""

    heads: int
    kv_heads: int

    @property
    def queries_per_key(self) -> int:
        return self.heads // self.kv_heads


class _FusedAttention(torch.autograd.Function):
    """Rotation (optional) and attention on a joint (B, T, H + 2 G, K) tensor, with gradients; gives (B, T, H, K)."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTNK: Tensor,
        mask: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        is_causal: bool,
        heads: int,
        kv_heads: int,
    ) -> Tensor:
        ctx.save_for_backward(qkv_BTNK, mask, cos, sin)
        ctx.is_causal, ctx.shape = is_causal, _Shape(heads, kv_heads)
        arguments = (qkv_BTNK, mask, cos, sin, is_causal, ctx.shape)
        return _work("forward", lambda: _mixed(*arguments), *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        qkv_BTNK, mask, cos, sin = ctx.saved_tensors
        with torch.autocast(qkv_BTNK.device.type, enabled=False):
            arguments = (gradient_BTHK, qkv_BTNK, mask, cos, sin, ctx.is_causal, ctx.shape)
            dqkv_BTNK = _work("backward", lambda: _gradient(*arguments), *arguments)
        return dqkv_BTNK, None, None, None, None, None, None


def _mixed(
    qkv_BTNK: Tensor, mask: Tensor | None, cos: Tensor | None, sin: Tensor | None, is_causal: bool, shape: _Shape
) -> Tensor:
    """(B, T, H, K) output of attention: values of each head, weighted by its attention."""
    num_rows, num_tokens, _, head_dim = qkv_BTNK.shape
    out_BTHK = qkv_BTNK.new_empty(num_rows, num_tokens, shape.heads, head_dim)
    turning_of = _turnings(cos, sin, shape)
    for rows in _row_blocks(qkv_BTNK, shape, is_causal):
        q, k, v = _gather(qkv_BTNK[rows], shape, turning_of(rows))
        mixed = torch.empty_like(q)
        for queries in _query_blocks(num_tokens, is_causal):
            probabilities = _probabilities(q, k, _rows_of(mask, rows), queries, is_causal, shape)
            _block(mixed, queries, shape).copy_(torch.bmm(probabilities, v[:, : probabilities.shape[-1]]))
        _scatter(mixed, out_BTHK[rows], shape.queries_per_key)
    return out_BTHK


def _gradient(
    gradient_BTHK: Tensor,
    qkv_BTNK: Tensor,
    mask: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    is_causal: bool,
    shape: _Shape,
) -> Tensor:
    """(B, T, N, K) gradient of the joint tensor."""
    dqkv_BTNK = torch.empty_like(qkv_BTNK)
    turning_of = _turnings(cos, sin, shape)
    for rows in _row_blocks(qkv_BTNK, shape, is_causal):
        turning, row_mask = turning_of(rows), _rows_of(mask, rows)
        q, k, v = _gather(qkv_BTNK[rows], shape, turning)
        d_mixed = _by_key(gradient_BTHK[rows], shape.kv_heads)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for queries in _query_blocks(qkv_BTNK.shape[1], is_causal):
            probabilities = _probabilities(q, k, row_mask, queries, is_causal, shape)
            num_keys = probabilities.shape[-1]
            d_block, q_block = _block(d_mixed, queries, shape), _block(q, queries, shape)
            dv[:, :num_keys].baddbmm_(probabilities.transpose(1, 2), d_block)
            d_probabilities = torch.bmm(d_block, v[:, :num_keys].transpose(1, 2))
            d_scores = softmax_gradient(d_probabilities, probabilities)
            _block(dq, queries, shape).copy_(torch.bmm(d_scores, k[:, :num_keys]))
            dk[:, :num_keys].baddbmm_(d_scores.transpose(1, 2), q_block)
        # The gathered queries contain the scale: dk has it from them, dq still lacks it.
        dq.mul_(_scale(q))
        _scatter_gradients(dq, dk, dv, dqkv_BTNK[rows], shape, turning)
    return dqkv_BTNK


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


def _rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    return None if mask is None else mask[rows]


def _turnings(cos: Tensor | None, sin: Tensor | None, shape: _Shape) -> Callable[[slice], _Turning | None]:
    """Function from rows to rotary tables: shared tables are built once, tables per row on demand."""
    if cos is None or sin is None:
        return lambda _: None
    heads_and_keys = sum(shape)
    if cos.dim() == 3:
        shared = _turning(cos, sin, heads_and_keys)
        return lambda _: shared
    return lambda rows: _turning(cos[rows], sin[rows], heads_and_keys)


def _turning(cos: Tensor, sin: Tensor, num_heads: int) -> _Turning:
    shape = (*cos.shape[:-2], num_heads, 2 * cos.shape[-1])
    return _Turning(
        torch.cat((cos, cos), dim=-1).expand(shape).contiguous(),
        torch.cat((-sin, sin), dim=-1).expand(shape).contiguous(),
    )


def _row_blocks(qkv_BTNK: Tensor, shape: _Shape, is_causal: bool) -> Iterator[slice]:
    num_rows, num_tokens = qkv_BTNK.shape[:2]
    num_queries = min(num_tokens, _QUERIES_AT_ONCE) if is_causal else num_tokens
    return blocks(num_rows, _SCORES_AT_ONCE // (shape.heads * num_queries * num_tokens))


def _query_blocks(num_tokens: int, is_causal: bool) -> Iterator[slice]:
    at_once = _QUERIES_AT_ONCE if is_causal else num_tokens
    for start in range(0, num_tokens, at_once):
        yield slice(start, min(start + at_once, num_tokens))


def _block(q: Tensor, queries: slice, shape: _Shape) -> Tensor:
    """(B G, Q, K) view of the queries of a block, out of (B G, T R, K)."""
    return q[:, queries.start * shape.queries_per_key : queries.stop * shape.queries_per_key]


def _by_key(x_BTHK: Tensor, kv_heads: int) -> Tensor:
    """(B G, T R, K), contiguous: heads that share a key are adjacent, so that one product serves all of them."""
    x_BGTRK = x_BTHK.view(*x_BTHK.shape[:2], kv_heads, -1, x_BTHK.shape[-1]).transpose(1, 2)
    return x_BGTRK.contiguous().flatten(0, 1).flatten(1, 2)


def _gather(qkv_BTNK: Tensor, shape: _Shape, turning: _Turning | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated and scaled queries (B G, T R, K), rotated keys and values (B G, T, K), all contiguous."""
    heads, kv_heads = shape
    qk_BTMK = qkv_BTNK[:, :, : heads + kv_heads]
    if turning is not None:
        qk_BTMK = rotate(qk_BTMK, turning, out=torch.empty_like(qk_BTMK, memory_format=torch.contiguous_format))
    q = _by_key(qk_BTMK[:, :, :heads], kv_heads).mul_(_scale(qkv_BTNK))
    return q, _by_key(qk_BTMK[:, :, heads:], kv_heads), _by_key(qkv_BTNK[:, :, heads + kv_heads :], kv_heads)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, queries: slice, is_causal: bool, shape: _Shape) -> Tensor:
    """(B G, Q, S) attention probabilities of the queries of a block over their visible keys."""
    num_keys = queries.stop if is_causal else k.shape[1]
    scores = torch.bmm(_block(q, queries, shape), k[:, :num_keys].transpose(1, 2))
    scores_BGTRS = scores.view(-1, shape.kv_heads, queries.stop - queries.start, shape.queries_per_key, num_keys)
    if mask is not None:
        rows_of_mask = mask[:, :, queries] if mask.shape[2] > 1 else mask
        scores_BGTRS.add_(rows_of_mask[..., :num_keys].unsqueeze(3))
    elif is_causal:
        # All queries of the block see the keys before it; only the last square contains later keys.
        num_queries = queries.stop - queries.start
        later_TS = scores.new_full((num_queries, num_queries), float("-inf")).triu_(1)
        scores_BGTRS[..., queries.start :].add_(later_TS[:, None, :])
    return torch.softmax(scores, dim=-1)


def _scatter(mixed: Tensor, out_BTHK: Tensor, queries_per_key: int) -> None:
    """Inverse of `_by_key`, into `out_BTHK`."""
    num_rows, num_tokens, heads, head_dim = out_BTHK.shape
    kv_heads = heads // queries_per_key
    x_BGTRK = mixed.view(num_rows, kv_heads, num_tokens, queries_per_key, head_dim)
    out_BTHK.view(num_rows, num_tokens, kv_heads, queries_per_key, head_dim).copy_(x_BGTRK.transpose(1, 2))


def _scatter_gradients(
    dq: Tensor, dk: Tensor, dv: Tensor, dqkv_BTNK: Tensor, shape: _Shape, turning: _Turning | None
) -> None:
    """Write gradients into the joint tensor; gradients of rotated vectors are rotated back."""
    heads, kv_heads = shape
    _scatter(dv, dqkv_BTNK[:, :, heads + kv_heads :], 1)
    dqk_BTMK = dqkv_BTNK[:, :, : heads + kv_heads]
    if turning is None:
        _scatter(dq, dqk_BTMK[:, :, :heads], shape.queries_per_key)
        _scatter(dk, dqk_BTMK[:, :, heads:], 1)
        return
    rotated_BTMK = torch.empty_like(dqk_BTMK, memory_format=torch.contiguous_format)
    _scatter(dq, rotated_BTMK[:, :, :heads], shape.queries_per_key)
    _scatter(dk, rotated_BTMK[:, :, heads:], 1)
    rotate(rotated_BTMK, turning, out=dqk_BTMK, back=True)
