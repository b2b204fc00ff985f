"""Continue a text with a decoder; fill the masks of a text with an encoder. Works on token ids.

Shape suffixes: T tokens of one text, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.layers.transformer_parts import KeyValueCache
from core.models.decoder import LlamaDecoder
from core.models.encoder import ModernEncoder, RobertaEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. The default takes the likeliest (greedy)."""

    temperature: float = 0.0
    """0: greedy. 1: as the model says. Above: flatter."""
    top_k: int | None = None
    """Only the so many likeliest tokens. None: all."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability, at least one. None: all."""

    def __post_init__(self) -> None:
        faults = []
        if self.temperature < 0:
            faults.append(f"temperature={self.temperature} is below 0; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            faults.append(f"top_k={self.top_k} is below 1; leave it out for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            faults.append(f"top_p={self.top_p} is not in (0, 1]; leave it out for all tokens")
        if faults:
            raise ValueError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Filling:
    """One candidate for one mask."""

    token: int
    probability: float


GREEDY = Sampling()


def generate(
    model: LlamaDecoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    uses_cache: bool = True,
) -> list[int]:
    """The new tokens that follow `prompt`: `max_new_tokens` of them, or fewer and the last one in `end_ids`.

    The prompt counts for nothing: however long it is, there are new tokens. When a text outgrows the positions that the
    model was trained on, the model goes on from the later half of what it can take.

    Raises:
        ValueError: An empty prompt, or no token asked for.
    """
    tokens = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        end_ids=end_ids,
        sampling=sampling,
        seed=seed,
        uses_cache=uses_cache,
    )
    return list(tokens)


def stream(
    model: LlamaDecoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    uses_cache: bool = True,
) -> Iterator[int]:
    """The tokens of `generate`, each as soon as it is there."""
    if not prompt:
        raise ValueError("nothing to continue: the prompt has no token; begin with the token that begins a text")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; ask for at least one")
    return _stream(model, list(prompt), max_new_tokens, frozenset(end_ids), sampling, seed, uses_cache)


def choose_token(logits_V: Tensor, sampling: Sampling, rng: torch.Generator) -> int:
    """One token, drawn as `sampling` says."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = token_probabilities(logits_V, sampling)
    return int(torch.multinomial(probabilities_V.cpu(), 1, generator=rng))


def token_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """(V,): probability of each token after temperature, top-k and top-p, in this order; 0 for those cut off."""
    scaled_V = logits_V.float() / sampling.temperature
    ordered_V, tokens_V = scaled_V.sort(descending=True, stable=True)
    if sampling.top_k is not None:
        ordered_V[sampling.top_k :] = -torch.inf
    ordered_probabilities_V = ordered_V.softmax(dim=-1)
    if sampling.top_p is not None:
        # A token stays when those before it have not reached top_p yet, so the first always does.
        before_V = ordered_probabilities_V.cumsum(dim=-1) - ordered_probabilities_V
        ordered_probabilities_V = ordered_probabilities_V.where(before_V < sampling.top_p, 0.0)
    ordered_probabilities_V = ordered_probabilities_V / ordered_probabilities_V.sum()
    return torch.zeros_like(scaled_V).scatter(0, tokens_V, ordered_probabilities_V)


@torch.no_grad()
def fill_mask(
    model: RobertaEncoder | ModernEncoder, tokens: Sequence[int], *, mask_id: int, num_candidates: int = 5
) -> list[list[Filling]]:
    """For each mask in `tokens`, from left to right, its likeliest fillings, the best first.

    Each mask is filled by itself, with the others still masked, as in the fill-mask pipeline of transformers.

    Raises:
        ValueError: No mask in the text.
    """
    places = [place for place, token in enumerate(tokens) if token == mask_id]
    if not places:
        raise ValueError(f"the text has no mask (token {mask_id}), so there is nothing to fill")
    with _evaluating(model):
        device = model.tokens.weight.device
        hidden_TD = model.hidden_states(torch.tensor([list(tokens)], device=device))[0]
        probabilities = model.logits(hidden_TD[torch.tensor(places, device=device)]).float().softmax(dim=-1)
    best, which = probabilities.topk(min(num_candidates, probabilities.shape[-1]), dim=-1)
    return [
        [Filling(token, probability) for token, probability in zip(tokens_of_mask, shares, strict=True)]
        for tokens_of_mask, shares in zip(which.tolist(), best.tolist(), strict=True)
    ]


def _stream(
    model: LlamaDecoder,
    context: list[int],
    max_new_tokens: int,
    end_ids: frozenset[int],
    sampling: Sampling,
    seed: int,
    uses_cache: bool,
) -> Iterator[int]:
    rng = torch.Generator().manual_seed(seed)
    caches: list[KeyValueCache] = []
    # Counted are the new tokens. A condition on the whole length never makes one after a long prompt.
    for _ in range(max_new_tokens):
        if len(context) > model.num_positions:
            context, caches = context[-max(1, model.num_positions // 2) :], []
        if uses_cache and not caches:
            caches = [KeyValueCache() for _ in model.layers]
        token = choose_token(_next_logits(model, context, caches), sampling, rng)
        context.append(token)
        yield token
        if token in end_ids:
            return


@torch.no_grad()
def _next_logits(model: LlamaDecoder, context: list[int], caches: list[KeyValueCache]) -> Tensor:
    """(V,): logits of the token after `context`; with caches, only what they do not hold yet is computed."""
    with _evaluating(model):
        num_known = caches[0].num_tokens if caches else 0
        inputs_BT = torch.tensor([context[num_known:]], device=model.tokens.weight.device)
        hidden_BTD = model.hidden_states_after(inputs_BT, caches) if caches else model.hidden_states(inputs_BT)
        return model.logits(hidden_BTD[0, -1])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; the model is as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
