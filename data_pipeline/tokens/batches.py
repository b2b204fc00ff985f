"""Token blocks to batches. The rows and masks of a position do not depend on ranks or micro-batch sizes."""

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
    """Input of one forward pass: B rows, T tokens a row, P predicted positions."""

    inputs_BT: Tensor
    """int64; masked LM: tokens with the masks applied."""

    positions_P: Tensor
    """int64, ascending: flat indices into B x T. The hidden state at positions_P[i] predicts labels_P[i]."""

    labels_P: Tensor
    """int64: the token at the position (masked LM), the next token (causal LM), or the class of the row, predicted at
    its first token (classification)."""

    document_ids_BT: Tensor | None
    """int32: 0, 1, 2 .. within a row. None: a row is one document, or attention crosses documents."""

    num_tokens: int
    """Tokens in these rows, padding not counted."""

    most_predicted: int
    """Predicted positions if no row held padding, special tokens or a second document: the upper bound of P. Memory
    that grows with P is allocated by this number, so that no batch needs more than a full one."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        ids = self.document_ids_BT
        return replace(
            self,
            inputs_BT=_moved(self.inputs_BT, device),
            positions_P=_moved(self.positions_P, device),
            labels_P=_moved(self.labels_P, device),
            document_ids_BT=None if ids is None else _moved(ids, device),
        )


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    # A copy from memory that the system may swap out makes the host wait, whatever `non_blocking` says.
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Shard:
    """One worker's rows of one global batch, in order."""

    row_numbers: NDArray[np.int64]
    epochs: NDArray[np.int64]
    """Epoch of each row; masks depend on it."""

    def __len__(self) -> int:
        return len(self.row_numbers)


class BatchSource:
    """Batches by position. It is stateless: (seed, position) determines a batch, so a resumed run asks for its next
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
            seed: Seed of the row order and the masks.
            shuffle: False reads rows in stored order in every epoch, as evaluation does.

        Raises:
            ValueError: Masked LM with a tokenizer without a mask token, or a rate out of range.
        """
        if masking_rate is not None and vocabulary.mask_id is None:
            raise ValueError(
                "objective: masked_lm needs a tokenizer with a mask token, and this one has none; set "
                "tokenizer.special_tokens: roberta, or objective: causal_lm"
            )
        if masking_rate is not None and not 0 < masking_rate <= 1:
            raise ValueError(f"masking_rate={masking_rate} is not in (0, 1]; 0.15 is usual")
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
        """Number of rows of one epoch."""
        return self.blocks.num_rows

    def shard(self, *, position: int, batch_size: int, rank: int, num_workers: int) -> Shard:
        """This rank's rows of the global batch that starts at `position`; ranks differ by at most one row.

        Args:
            position: Rows that all workers have consumed so far, over all epochs.
            batch_size: Rows of the global batch. The concatenated shards of all ranks are the same rows in the same
                order for every `num_workers`.
        """
        first = position + batch_size * rank // num_workers
        stop = position + batch_size * (rank + 1) // num_workers
        positions = np.arange(first, stop, dtype=np.int64)
        return Shard(*rows_at(positions, num_rows=self.num_rows, seed=self.seed, shuffle=self.shuffle))

    def batch(self, shard: Shard, start: int, stop: int) -> Batch:
        """Rows start..stop of a shard, on the CPU. Pure: the masks of a row do not depend on its micro-batch."""
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
    """Maximum number of predicted positions of a row: one document without padding or special tokens.

    Args:
        masking_rate: None for causal LM.
    """
    if masking_rate is None:
        return length - 1
    return max(1, math.floor(masking_rate * length + 0.5))  # rounded as `mask_rows` does


def next_token_is_target(rows: Rows) -> NDArray[np.bool_]:
    """(n, T): True where the next token is a target of causal LM. The last column is always False.

    Padding is no target. The first token of a document is none if attention stays within documents.
    """
    is_target = np.zeros(rows.tokens.shape, np.bool_)
    is_target[:, :-1] = rows.is_real()[:, 1:]
    if rows.document_ids is not None:
        is_target[:, :-1] &= rows.document_ids[:, 1:] == rows.document_ids[:, :-1]
    if rows.is_target is not None:
        is_target[:, :-1] &= rows.is_target[:, 1:]
    return is_target
