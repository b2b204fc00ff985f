"""Which kernel computes attention, and why: the one place that decides.

torch chooses among its CUDA kernels silently. Flash attention takes grouped heads, but neither masks nor fp32; the
memory-efficient kernel takes masks and fp32, but no groups. Nothing is left for groups with a mask or in fp32 but the
mathematical kernel, which materialises every score. So keys and values are repeated there: they are small.

Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, `can_use_flash_attention` and
`can_use_mem_efficient_attention`.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from core.layers.cache_blocks import has_cache_blocks

Kernel = Literal["cache blocks", "torch for processors", "flash", "memory-efficient"]

_LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class AttentionKernel:
    """A kernel and its reason."""

    kernel: Kernel
    repeats_keys: bool
    """Each key and value is repeated for all queries that share it."""
    reason: str


def attention_kernel(
    device: torch.device, dtype: torch.dtype, *, is_grouped: bool, has_mask: bool, has_cache: bool, has_dropout: bool
) -> AttentionKernel:
    """The kernel for one attention.

    Args:
        dtype: Of queries, keys and values.
        is_grouped: Several queries share a key.
        has_cache: Keys of earlier calls come first.
        has_dropout: Scores are dropped.
    """
    if has_cache_blocks(device):
        if dtype in _LOW_PRECISION and not has_cache and not has_dropout:
            return AttentionKernel("cache blocks", False, "torch's kernel for processors is written for fp32")
        return AttentionKernel("torch for processors", False, "it takes groups, masks and every number format")
    if dtype in _LOW_PRECISION and not has_mask:
        return AttentionKernel("flash", False, "no mask, and it takes groups")
    why = "flash attention takes no mask" if has_mask else "flash attention takes no fp32"
    groups = "; the memory-efficient kernel takes no groups" if is_grouped else ""
    return AttentionKernel("memory-efficient", is_grouped, why + groups)
