"""Evaluate a model on the holdout: exact over all rows, independent of micro-batch size and number of workers.

Shape suffixes: B rows, T tokens a row, P predicted positions, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.distributed.adaptive_micro_batch import half_of
from core.distributed.collective_attempt import attempt_together
from core.distributed.workers import Workers
from core.layers.cache_blocks import has_cache_blocks
from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts
from core.models.language_model import LanguageModel
from core.settings.precision import Precision
from core.step.holdout_masks import MASKING_RATE, MASKING_SEED
from core.step.objectives import predicted_hidden
from data_pipeline.tokens.batches import Batch, BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus

_LOGITS_AT_ONCE = 2**23
_LOGITS_IN_CACHE = 2**21
"""For CPUs: training holds few logits besides its gradients there, and evaluation must not need more memory."""


def holdout_source(data: PreparedCorpus, *, is_causal: bool) -> BatchSource:
    """Batches of the holdout in stored order, with masks that do not depend on training settings."""
    rate = None if is_causal else MASKING_RATE
    return BatchSource(data.holdout, data.vocabulary, masking_rate=rate, seed=MASKING_SEED, shuffle=False)


@dataclass
class _Counts:
    """Counts of an evaluation. Every field is a sum over predicted positions, so ranks can be added."""

    sums: Tensor
    """(6,) fp64: loss in nats, predicted positions, correct ones, correct in the top ten, tokens without padding,
    squared losses."""
    classes_3V: Tensor
    """int64, for each token: positions where it is predicted correctly, predicted, the label."""
    all_tokens: Tensor
    """(2,) int64: correct predictions among all tokens without padding, and the number of these tokens."""


def evaluate(
    model: LanguageModel,
    source: BatchSource,
    workers: Workers,
    *,
    micro_batch_size: int,
    precision: Precision,
    all_tokens: bool = False,
    listen: Callable[[], None] = lambda: None,
) -> dict[str, float] | OomFacts:
    """Metrics of the model over every row of `source`, or the facts if memory runs out. All workers call it.

    Args:
        micro_batch_size: Rows per forward pass on each worker.
        all_tokens: Masked LM: also measure the accuracy over all tokens, masked or not; this computes their logits too.
        listen: Called before each micro-batch; raises StopRequestedError to stop the run.

    Returns:
        holdout/loss_nats_per_token; holdout/loss_standard_error, its standard error over the predicted positions, as if
        they were independent; holdout/accuracy and holdout/top10_accuracy, shares of predicted positions;
        holdout/macro_f1, the mean F1 over the tokens that occur or are predicted; holdout/perplexity;
        holdout/bits_per_byte, the mean loss in bits times the number of tokens, divided by the bytes of their text. It
        compares across tokenizers; for masked LM only among masked LMs, because it is no code length.

    Raises:
        StopRequestedError: `listen` raised it on a worker.
        ValueError: The holdout has no token to predict.
    """
    was_training = model.training
    model.eval()
    try:
        counts = attempt_together(
            lambda: _count(model, source, workers, micro_batch_size, precision, all_tokens, listen),
            workers,
            phase="evaluation",
        )
    finally:
        model.train(was_training)
    if isinstance(counts, OomFacts):
        return counts
    for tensor in (counts.sums, counts.classes_3V, counts.all_tokens):
        workers.add_up(tensor)
    return _metrics(counts, num_bytes=source.blocks.num_bytes)


class Judge(Protocol):
    """Further metrics of a model, from data of its own. Rank 0 alone asks for them."""

    def metrics(self, model: LanguageModel, num_rows: int, listen: Callable[[], None]) -> dict[str, float]:
        """Metrics of a model in evaluation mode.

        Args:
            num_rows: Rows of the model's length that a forward pass may hold; changes speed and memory only.
            listen: Called before each forward pass; raises StopRequestedError to stop the run.
        """
        ...

    def rehearse(self, model: LanguageModel, num_rows: int) -> None:
        """The forward pass that needs the most memory, its result discarded."""
        ...


class Evaluation:
    """The evaluations of one run. After running out of memory it retries with fewer rows, if allowed.

    Args:
        num_rows: Rows per forward pass on each worker.
        shrinks: Allow retries with fewer rows.
        listen: As in `evaluate`.
        judge: Gives further metrics where they are asked for. None: there are none.
    """

    def __init__(
        self,
        model: LanguageModel,
        source: BatchSource,
        workers: Workers,
        precision: Precision,
        *,
        num_rows: int,
        shrinks: bool,
        listen: Callable[[], None] = lambda: None,
        judge: Judge | None = None,
    ) -> None:
        self.model = model
        self.source = source
        self.workers = workers
        self.precision = precision
        self.num_rows = num_rows
        self.shrinks = shrinks
        self._listen = listen
        self._judge = judge
        self.oom_events: list[OutOfMemoryEvent] = []
        """Out-of-memory events that the run survived."""

    def metrics(self, *, step: int, is_judged: bool = False) -> dict[str, float] | OomFacts:
        """Metrics of `evaluate` after `step` steps; the facts if no evaluation fits in memory.

        Args:
            is_judged: Add the metrics of the judge, if there is one.
        """
        found = self._fitting(self._evaluated, step)
        if isinstance(found, OomFacts) or not is_judged or self._judge is None:
            return found
        judged = self._fitting(self._judged, step)
        return judged if isinstance(judged, OomFacts) else found | judged

    def _fitting(self, attempt: Callable[[], dict[str, float] | OomFacts], step: int) -> dict[str, float] | OomFacts:
        while True:
            found = attempt()
            if not isinstance(found, OomFacts) or not self._shrink(found, step):
                return found

    def _evaluated(self) -> dict[str, float] | OomFacts:
        return evaluate(
            self.model,
            self.source,
            self.workers,
            micro_batch_size=self.num_rows,
            precision=self.precision,
            listen=self._listen,
        )

    def _judged(self) -> dict[str, float] | OomFacts:
        """Metrics of the judge, the same on all workers; the others wait for the first."""
        was_training = self.model.training
        self.model.eval()
        try:
            found = attempt_together(self._judged_here, self.workers, phase="evaluation")
        finally:
            self.model.train(was_training)
        if isinstance(found, OomFacts):
            return found
        of_first = self.workers.all_values(found)[0]
        assert isinstance(of_first, dict)
        return of_first

    def _judged_here(self) -> dict[str, float]:
        if self._judge is None or not self.workers.is_first:
            return {}
        with torch.no_grad(), self.precision.autocast():
            return self._judge.metrics(self.model, self.num_rows, self._listen)

    def rehearse(self, *, step: int) -> OomFacts | None:
        """Evaluate the first rows and discard the result, to test the memory; all other rows need the same."""
        while True:
            found = attempt_together(self._first_rows, self.workers, phase="evaluation")
            if not isinstance(found, OomFacts):
                return None
            if not self._shrink(found, step):
                return found

    def _shrink(self, facts: OomFacts, step: int) -> bool:
        if not self.shrinks or self.num_rows == 1:
            return False
        # Evaluation needs less than training, which was predicted to fit, so no prediction helps: halve the size.
        tried, self.num_rows = self.num_rows, half_of(self.num_rows)
        self.oom_events.append(OutOfMemoryEvent(facts, step, tried, self.num_rows))
        return True

    @torch.no_grad()
    def _first_rows(self) -> None:
        num_rows = min(self.num_rows, self.source.num_rows)
        shard = self.source.shard(position=0, batch_size=num_rows, rank=0, num_workers=1)
        batch = self.source.batch(shard, 0, num_rows).to(self.workers.device)
        self.model.eval()
        try:
            with self.precision.autocast():
                counts = _no_counts(self.source.vocabulary.size, self.workers.device)
                hidden_PD = predicted_hidden(self.model.hidden_states, batch)
                _add_predictions(counts, self.model, hidden_PD, batch.labels_P)
                del counts, hidden_PD
                if self._judge is not None and self.workers.is_first:
                    self._judge.rehearse(self.model, self.num_rows)
        finally:
            self.model.train()


@torch.no_grad()
def _count(
    model: LanguageModel,
    source: BatchSource,
    workers: Workers,
    micro_batch_size: int,
    precision: Precision,
    all_tokens: bool,
    listen: Callable[[], None],
) -> _Counts:
    shard = source.shard(position=0, batch_size=source.num_rows, rank=workers.rank, num_workers=workers.count)
    counts = _no_counts(source.vocabulary.size, workers.device)
    for start in range(0, len(shard), micro_batch_size):
        listen()
        batch = source.batch(shard, start, min(start + micro_batch_size, len(shard))).to(workers.device)
        with precision.autocast():
            if all_tokens:
                _add_all_tokens(counts, model, batch, pad_id=source.vocabulary.pad_id)
            else:
                hidden_PD = predicted_hidden(model.hidden_states, batch)
                _add_predictions(counts, model, hidden_PD, batch.labels_P)
        counts.sums[4] += batch.num_tokens
    return counts


def _no_counts(vocabulary_size: int, device: torch.device) -> _Counts:
    return _Counts(
        sums=torch.zeros(6, dtype=torch.float64, device=device),
        classes_3V=torch.zeros(3, vocabulary_size, dtype=torch.int64, device=device),
        all_tokens=torch.zeros(2, dtype=torch.int64, device=device),
    )


def _add_predictions(counts: _Counts, model: LanguageModel, hidden_PD: Tensor, labels_P: Tensor) -> None:
    positions_at_once = _positions_at_once(counts)
    for hidden_pD, labels_p in zip(
        torch.split(hidden_PD, positions_at_once), torch.split(labels_P, positions_at_once), strict=True
    ):
        logits_pV = model.logits(hidden_pD).float()
        label_logits_p1 = logits_pV.gather(-1, labels_p.unsqueeze(-1))
        predicted_p = logits_pV.argmax(-1)
        is_right_p = predicted_p == labels_p
        # Counting the tokens with a larger logit finds the top ten without sorting; a tie counts for the label.
        is_near_p = (logits_pV > label_logits_p1).sum(-1) < 10
        losses_p = torch.logsumexp(logits_pV, dim=-1) - label_logits_p1.squeeze(-1)
        exact_p = losses_p.double()
        counts.sums[0] += exact_p.sum()
        counts.sums[1] += labels_p.numel()
        counts.sums[2] += is_right_p.sum()
        counts.sums[3] += is_near_p.sum()
        counts.sums[5] += exact_p @ exact_p
        for row, (classes_p, weights_p) in enumerate(
            ((labels_p, is_right_p), (predicted_p, torch.ones_like(labels_p)), (labels_p, torch.ones_like(labels_p)))
        ):
            counts.classes_3V[row].index_add_(0, classes_p, weights_p.to(torch.int64))


def _positions_at_once(counts: _Counts) -> int:
    at_once = _LOGITS_IN_CACHE if has_cache_blocks(counts.sums.device) else _LOGITS_AT_ONCE
    return max(1, at_once // counts.classes_3V.shape[1])


def _add_all_tokens(counts: _Counts, model: LanguageModel, batch: Batch, *, pad_id: int) -> None:
    """Add counts over every token that is not padding, predicted positions included."""
    hidden_ND = model.hidden_states(batch.inputs_BT, batch.document_ids_BT).flatten(0, 1)
    _add_predictions(counts, model, hidden_ND.index_select(0, batch.positions_P), batch.labels_P)
    # Restore the masked tokens: labels are the original tokens at the predicted positions.
    truth_N = batch.inputs_BT.flatten().index_copy(0, batch.positions_P, batch.labels_P)
    is_real_N = truth_N != pad_id
    positions_at_once = _positions_at_once(counts)
    for start in range(0, len(truth_N), positions_at_once):
        chunk = slice(start, start + positions_at_once)
        is_right_n = model.logits(hidden_ND[chunk]).argmax(-1) == truth_N[chunk]
        counts.all_tokens[0] += (is_right_n & is_real_N[chunk]).sum()
    counts.all_tokens[1] += is_real_N.sum()


def _metrics(counts: _Counts, *, num_bytes: int) -> dict[str, float]:
    loss_sum, num_predicted, num_right, num_near, num_tokens, squares = counts.sums.tolist()
    if num_predicted == 0:
        raise ValueError("the holdout has no token to predict; raise corpus.holdout to give it more documents")
    loss = loss_sum / num_predicted
    found = {
        "holdout/loss_nats_per_token": loss,
        "holdout/loss_standard_error": math.sqrt(max(squares / num_predicted - loss**2, 0.0) / num_predicted),
        "holdout/accuracy": num_right / num_predicted,
        "holdout/top10_accuracy": num_near / num_predicted,
        "holdout/macro_f1": _macro_f1(counts.classes_3V),
        "holdout/perplexity": math.exp(min(loss, 700.0)),  # exp(710) overflows a float.
        "holdout/bits_per_byte": loss * num_tokens / (math.log(2) * num_bytes),
    }
    num_right_of_all, num_all = counts.all_tokens.tolist()
    if num_all:
        found["holdout/all_tokens_accuracy"] = num_right_of_all / num_all
    return found


def _macro_f1(classes_3V: Tensor) -> float:
    right_V, predicted_V, true_V = classes_3V.double()
    occurring_V = predicted_V + true_V
    seen_V = occurring_V > 0
    return float((2 * right_V[seen_V] / occurring_V[seen_V]).mean())
