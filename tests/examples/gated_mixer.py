"""A mixer without attention: a gated, causal convolution over each channel, as in Mamba's first stage or Hyena."""

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMixer(nn.Module):
    """The simple path: logits at all positions."""

    def __init__(
        self, vocabulary_size: int, width: int = 64, layers: int = 2, kernel: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.layers = nn.ModuleList(MixerLayer(width, kernel, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x))


class MixerLayer(nn.Module):
    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, 4 * width)
        self.over_time = nn.Conv1d(2 * width, 2 * width, kernel, groups=2 * width)
        self.out = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        mixed, gate = self.into(self.norm(x)).chunk(2, dim=-1)
        padded = F.pad(mixed.transpose(1, 2), (self.kernel - 1, 0))  # A token sees itself and earlier ones.
        mixed = F.silu(self.over_time(padded).transpose(1, 2))
        return self.dropout(self.out(mixed * F.silu(gate)))
