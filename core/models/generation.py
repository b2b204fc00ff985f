"""Generate text with a decoder; fill masks with an encoder. All functions work on token ids.

Shape suffixes: T tokens of one text, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.layers.transformer_parts import KeyValueCache
from core.models.decoder import LlamaDecoder
from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Settings for sampling the next token. The default is greedy decoding.

    Raises:
        ValueError: A setting is out of range; the message lists all faults.
    """

    temperature: float = 0.0
    """Divisor of the logits. 0: greedy. 1: the distribution of the model. Above 1: flatter."""
    top_k: int | None = None
    """Sample only from the K most likely tokens. None: all tokens."""
    top_p: float | None = None
    """Sample only from the most likely tokens that together reach this probability, at least one. None: all tokens."""

    def __post_init__(self) -> None:
        faults = []
        if self.temperature < 0:
            faults.append(f"temperature={self.temperature} is below 0; use 0 for greedy decoding")
        if self.top_k is not None and self.top_k < 1:
            faults.append(f"top_k={self.top_k} is below 1; omit it to sample from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            faults.append(f"top_p={self.top_p} is not in (0, 1]; omit it to sample from all tokens")
        if faults:
            raise ValueError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Filling:
    """One candidate token for one mask."""

    token: int
    probability: float
    """Probability of the token at the mask, in [0, 1]."""


GREEDY = Sampling()


def stream(
    model: LlamaDecoder | GivenModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    uses_cache: bool = True,
) -> Iterator[int]:
    """The new tokens that follow `prompt`, without the prompt, one by one as they are generated.

    Generation stops after `max_new_tokens` tokens or after a token in `end_ids`, which is included. If the text exceeds
    the positions of the model, generation continues from the last half of the maximum length.

    Args:
        seed: Seed of the sampling.
        uses_cache: Keep keys and values between tokens; the result is the same without. A user's class has no cache.

    Raises:
        ValueError: At the call: the prompt is empty, or max_new_tokens is below 1.
    """
    if not prompt:
        raise ValueError("the prompt has no token; give at least the token that begins a text")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} is below 1; request at least one token")
    return _stream(model, list(prompt), max_new_tokens, frozenset(end_ids), sampling, seed, uses_cache)


def choose_token(logits_V: Tensor, sampling: Sampling, rng: torch.Generator) -> int:
    """One token id, sampled according to `sampling`."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = token_probabilities(logits_V, sampling)
    return int(torch.multinomial(probabilities_V.cpu(), 1, generator=rng))


def token_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """(V,) probability of each token after temperature, top-k and top-p, in this order; excluded tokens have 0."""
    scaled_V = logits_V.float() / sampling.temperature
    ordered_V, tokens_V = scaled_V.sort(descending=True, stable=True)
    if sampling.top_k is not None:
        ordered_V[sampling.top_k :] = -torch.inf
    ordered_probabilities_V = ordered_V.softmax(dim=-1)
    if sampling.top_p is not None:
        # A token stays if the tokens before it do not reach top_p, so the first one always stays.
        before_V = ordered_probabilities_V.cumsum(dim=-1) - ordered_probabilities_V
        ordered_probabilities_V = ordered_probabilities_V.where(before_V < sampling.top_p, 0.0)
    ordered_probabilities_V = ordered_probabilities_V / ordered_probabilities_V.sum()
    return torch.zeros_like(scaled_V).scatter(0, tokens_V, ordered_probabilities_V)


@torch.no_grad()
def fill_mask(
    model: LanguageModel, tokens: Sequence[int], *, mask_id: int, num_candidates: int = 5
) -> list[list[Filling]]:
    """The most likely tokens for each mask in `tokens`, from left to right, most likely first.

    Masks are filled independently, each with the others still masked, as in the fill-mask pipeline of transformers.

    Args:
        num_candidates: Candidates per mask.

    Raises:
        ValueError: The text has no mask.
    """
    positions = [position for position, token in enumerate(tokens) if token == mask_id]
    if not positions:
        raise ValueError(f"the text has no mask (token {mask_id}); put at least one mask where a token is missing")
    with _evaluating(model):
        device = next(model.parameters()).device
        hidden_TD = model.hidden_states(torch.tensor([list(tokens)], device=device))[0]
        probabilities = model.logits(hidden_TD[torch.tensor(positions, device=device)]).float().softmax(dim=-1)
    best, which = probabilities.topk(min(num_candidates, probabilities.shape[-1]), dim=-1)
    return [
        [Filling(token, probability) for token, probability in zip(tokens_of_mask, shares, strict=True)]
        for tokens_of_mask, shares in zip(which.tolist(), best.tolist(), strict=True)
    ]


def _stream(
    model: LlamaDecoder | GivenModel,
    context: list[int],
    max_new_tokens: int,
    end_ids: frozenset[int],
    sampling: Sampling,
    seed: int,
    uses_cache: bool,
) -> Iterator[int]:
    rng = torch.Generator().manual_seed(seed)
    caches: list[KeyValueCache] = []
    # Count new tokens only: a limit on the whole length would generate nothing after a long prompt.
    for _ in range(max_new_tokens):
        if len(context) > model.num_positions:
            context, caches = context[-max(1, model.num_positions // 2) :], []
        if uses_cache and not caches and isinstance(model, LlamaDecoder):
            caches = [KeyValueCache() for _ in model.layers]
        token = choose_token(_next_logits(model, context, caches), sampling, rng)
        context.append(token)
        yield token
        if token in end_ids:
            return


@torch.no_grad()
def _next_logits(model: LlamaDecoder | GivenModel, context: list[int], caches: list[KeyValueCache]) -> Tensor:
    """(V,) logits of the token after `context`; with caches, only tokens that they lack are computed."""
    with _evaluating(model):
        num_known = caches[0].num_tokens if caches else 0
        inputs_BT = torch.tensor([context[num_known:]], device=next(model.parameters()).device)
        if caches and isinstance(model, LlamaDecoder):
            hidden_BTD = model.hidden_states_after(inputs_BT, caches)
        else:
            hidden_BTD = model.hidden_states(inputs_BT)
        return model.logits(hidden_BTD[0, -1])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which the model is in evaluation mode (no dropout); its mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
