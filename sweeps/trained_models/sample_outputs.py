"""Samples of the winning model on holdout rows, each with its loss: restored masks, or continuations."""

from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from core.models.decoder import LlamaDecoder
from core.models.generation import stream
from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel
from core.step.evaluation import holdout_source
from core.step.objectives import predicted_hidden
from data_pipeline.schema.settings import Settings
from data_pipeline.tokens.batches import Batch
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import load_tokenizer, panics_explained

_MAX_TOKENS = 64
"""Tokens of a row that are shown; the loss is that of the whole row."""
_MAX_NEW_TOKENS = 32
_VISIBLE = str.maketrans({"\n": "⏎", " ": "␣", "\t": "⇥"})


class Sample(Settings):
    """One row of the holdout and the output of a model for it."""

    text: str
    """Masked LM: the row with its masked tokens in ⟦brackets⟧. Causal LM: the part given as prompt."""
    made: str
    """Masked LM: the row with the model's likeliest tokens in the brackets. Causal LM: the greedy continuation."""
    loss_nats_per_token: float
    """Mean over the row's predicted tokens, as in evaluation."""


@torch.no_grad()
def draw_samples(model: LanguageModel, data: PreparedCorpus, *, count: int = 4) -> list[Sample]:
    """Samples of the first holdout rows, under the masks of evaluation, so that runs compare.

    Args:
        model: In fp32, on the processor.
    """
    source = holdout_source(data, is_causal=model.is_causal)
    tokenizer = load_tokenizer(data.tokenizer_path)
    shard = source.shard(position=0, batch_size=min(count, source.num_rows), rank=0, num_workers=1)
    was_training = model.training
    model.eval()
    try:
        return [_sample(model, source.batch(shard, row, row + 1), tokenizer, data) for row in range(len(shard))]
    finally:
        model.train(was_training)


def _sample(model: LanguageModel, batch: Batch, tokenizer: Tokenizer, data: PreparedCorpus) -> Sample:
    logits_PV = model.logits(predicted_hidden(model.hidden_states, batch)).float()
    loss = float(F.cross_entropy(logits_PV, batch.labels_P))
    row = batch.inputs_BT.view(-1)[: batch.num_tokens].tolist()
    if isinstance(model, LlamaDecoder | GivenModel) and model.is_causal:
        prompt = row[: _prompt_length(batch, len(row))]
        new = list(stream(model, prompt, max_new_tokens=_MAX_NEW_TOKENS, end_ids=(data.vocabulary.eos_id,)))
        return Sample(text=_decoded(tokenizer, prompt), made=_decoded(tokenizer, new), loss_nats_per_token=loss)
    hidden, guessed = (_by_position(batch.positions_P, tokens_P) for tokens_P in (batch.labels_P, logits_PV.argmax(-1)))
    return Sample(
        text=with_brackets(tokenizer, row[:_MAX_TOKENS], hidden),
        made=with_brackets(tokenizer, row[:_MAX_TOKENS], guessed),
        loss_nats_per_token=loss,
    )


def _prompt_length(batch: Batch, num_tokens: int) -> int:
    """Half the row; of a conversation, the part before its first answer."""
    first = int(batch.positions_P[0]) + 1
    if first > 1:
        return first
    return max(1, min(num_tokens // 2, _MAX_TOKENS - _MAX_NEW_TOKENS))


def _by_position(positions_P: Tensor, tokens_P: Tensor) -> dict[int, int]:
    return dict(zip(positions_P.tolist(), tokens_P.tolist(), strict=True))


def with_brackets(tokenizer: Tokenizer, row: Sequence[int], in_brackets: Mapping[int, int]) -> str:
    """The text of a row, with the tokens of `in_brackets` at their positions in brackets."""
    pieces = [_decoded(tokenizer, [in_brackets.get(position, token)]) for position, token in enumerate(row)]
    for position in (position for position in in_brackets if position < len(row)):
        word = pieces[position].strip()
        # A token may be white space only; a symbol makes it visible.
        parts = pieces[position].partition(word) if word else ("", pieces[position].translate(_VISIBLE), "")
        pieces[position] = f"{parts[0]}⟦{parts[1]}⟧{parts[2]}"
    # Byte-level tokens carry their own spaces; word tokens need one between them.
    carries_spaces = _decoded(tokenizer, row[:3]) == "".join(_decoded(tokenizer, [token]) for token in row[:3])
    return ("" if carries_spaces else " ").join(pieces)


def _decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    with panics_explained():
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))
