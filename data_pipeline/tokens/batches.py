"""Token blocks to batches: any rank, any position, any micro-batch, always the same rows under the same masks."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.tokens.masking import mask_rows
from data_pipeline.tokens.row_order import rows_at
from data_pipeline.tokens.token_blocks import Rows, TokenBlocks
from data_pipeline.tokens.tokenizer import Vocabulary


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows, T tokens a row, P predicted positions, ready for a model."""

    inputs_BT: Tensor
    """int64; for masked LM already masked."""

    positions_P: Tensor
    """int64, ascending: flat indices into B x T. The hidden state at positions_P[i] predicts labels_P[i]."""

    labels_P: Tensor
    """int64: the token at the position itself (masked LM) or the one after it (causal); the class of the row where rows
    have labels, predicted at their first token."""

    document_ids_BT: Tensor | None
    """int32: 0, 1, 2 .. within a row; None where a row is one document or attention goes across documents."""

    num_tokens: int
    """Real tokens in these rows, padding not counted."""

    most_predicted: int
    """Positions that would predict if none of these rows held padding, special tokens or a second document. What takes
    memory by the number of positions goes by this one, so that batches with a few fewer need no more than full ones."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        ids = self.document_ids_BT
        return replace(
            self,
            inputs_BT=self.inputs_BT.to(device, non_blocking=True),
            positions_P=self.positions_P.to(device, non_blocking=True),
            labels_P=self.labels_P.to(device, non_blocking=True),
            document_ids_BT=None if ids is None else ids.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Shard:
    """One worker's part of one global batch, in order."""

    row_numbers: NDArray[np.int64]
    epochs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_numbers)


class BatchSource:
    """Batches by position. Holds no state: (seed, position) says everything, so resuming is asking for the next
    position."""

    def __init__(
        self,
        blocks: TokenBlocks,
        vocabulary: Vocabulary,
        *,
        masking_rate: float | None,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        """
        Args:
            masking_rate: Share of maskable tokens that is predicted, in (0, 1]; None for causal LM.
            seed: Order of rows and masks.
            shuffle: False reads rows in stored order in every epoch, as evaluation wants it.

        Raises:
            ValueError: Masked LM without a mask token, or a rate out of range.
        """
        if masking_rate is not None and vocabulary.mask_id is None:
            raise ValueError(
                "masked_lm needs a tokenizer with a mask token, and this one has none: "
                "use special_tokens: roberta, or causal_lm"
            )
        if masking_rate is not None and not 0 < masking_rate <= 1:
            raise ValueError(f"masking_rate={masking_rate} is not in (0, 1]")
        self.blocks = blocks
        self.vocabulary = vocabulary
        self.masking_rate = masking_rate
        self.seed = seed
        self.shuffle = shuffle
        is_special = np.zeros(vocabulary.size, np.bool_)
        is_special[list(vocabulary.special_ids)] = True
        self._is_special = is_special
        self._ordinary_ids = np.flatnonzero(~is_special)

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return self.blocks.num_rows

    def shard(self, *, position: int, batch_size: int, rank: int, num_workers: int) -> Shard:
        """This rank's rows of the global batch that starts at `position`; ranks differ by at most one row.

        Args:
            position: Rows consumed so far by all workers, counted on over epochs.
            batch_size: Rows of the global batch. Laid end to end, the shards of all ranks are the same rows in the
            same order
                whatever `num_workers`.
        """
        first = position + batch_size * rank // num_workers
        stop = position + batch_size * (rank + 1) // num_workers
        places = np.arange(first, stop, dtype=np.int64)
        return Shard(*rows_at(places, num_rows=self.num_rows, seed=self.seed, shuffle=self.shuffle))

    def batch(self, shard: Shard, start: int, stop: int) -> Batch:
        """Rows start..stop of a shard. Pure: a row has the same masks in whichever micro-batch it comes."""
        row_numbers, epochs = shard.row_numbers[start:stop], shard.epochs[start:stop]
        rows = self.blocks.rows(row_numbers)
        tokens_BT = rows.tokens.astype(np.int64)
        if rows.labels is not None:
            inputs_BT, labels_P = tokens_BT, rows.labels
            positions_P = np.arange(len(tokens_BT)) * tokens_BT.shape[1]
        elif self.masking_rate is None:
            inputs_BT = tokens_BT
            positions_P = np.flatnonzero(next_token_is_target(rows))
            labels_P = tokens_BT.reshape(-1)[positions_P + 1]
        else:
            masked = mask_rows(
                tokens_BT,
                self._is_maskable(rows),
                row_numbers=row_numbers,
                epochs=epochs,
                seed=self.seed,
                masking_rate=self.masking_rate,
                mask_id=self._mask_id,
                ordinary_ids=self._ordinary_ids,
            )
            inputs_BT = masked.inputs_nT
            positions_P = np.flatnonzero(masked.is_predicted_nT)
            labels_P = tokens_BT.reshape(-1)[positions_P]
        ids = rows.document_ids
        return Batch(
            inputs_BT=torch.from_numpy(inputs_BT),
            positions_P=torch.from_numpy(positions_P),
            labels_P=torch.from_numpy(labels_P),
            document_ids_BT=None if ids is None else torch.from_numpy(ids),
            num_tokens=int(rows.num_tokens.sum()),
            most_predicted=len(row_numbers)
            * (1 if rows.labels is not None else predicted_in_full_row(tokens_BT.shape[1], self.masking_rate)),
        )

    @property
    def _mask_id(self) -> int:
        assert self.vocabulary.mask_id is not None
        return self.vocabulary.mask_id

    def _is_maskable(self, rows: Rows) -> NDArray[np.bool_]:
        is_maskable: NDArray[np.bool_] = ~self._is_special[rows.tokens] & rows.is_real()
        if rows.is_target is not None:
            is_maskable &= rows.is_target
        return is_maskable


def predicted_in_full_row(length: int, masking_rate: float | None) -> int:
    """Positions that predict in a row of one document without padding or special tokens: the most there are.

    Args:
        masking_rate: None for causal LM.
    """
    if masking_rate is None:
        return length - 1
    return max(1, math.floor(masking_rate * length + 0.5))  # rounded as `mask_rows` does


def next_token_is_target(rows: Rows) -> NDArray[np.bool_]:
    """(n, T): whether the token after this one is predicted from it. The last column is always False.

    Padding is no target, nor is the first token of a document that may not look at the document before it.
    """
    is_target = np.zeros(rows.tokens.shape, np.bool_)
    is_target[:, :-1] = rows.is_real()[:, 1:]
    if rows.document_ids is not None:
        is_target[:, :-1] &= rows.document_ids[:, 1:] == rows.document_ids[:, :-1]
    if rows.is_target is not None:
        is_target[:, :-1] &= rows.is_target[:, 1:]
    return is_target
