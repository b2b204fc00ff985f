"""Generation makes new tokens, always; the cache changes nothing; masks are filled by likelihood."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.layers.transformer_parts import KeyValueCache
from core.models.decoder import LlamaDecoder
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.models.generation import Filling, Sampling, choose_token, fill_mask, stream, token_probabilities
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig

VOCABULARY = 60
MASK = 4


def decoder(**settings: object) -> LlamaDecoder:
    torch.manual_seed(0)
    shape = {"family": "decoder", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "sequence_length": 24}
    model = build_model(ModelConfig.model_validate(shape | settings), VOCABULARY)
    assert isinstance(model, LlamaDecoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # Far from the flat distribution of a fresh model, so that choices differ.
    return model


def generate(model: LlamaDecoder, prompt: list[int], **asked: Any) -> list[int]:
    """All tokens of a stream."""
    return list(stream(model, prompt, **asked))


@pytest.mark.parametrize("uses_cache", [True, False])
@pytest.mark.parametrize("prompt_length", [1, 5, 23, 24, 25, 100])
def test_generation_makes_exactly_the_tokens_asked_for_however_long_the_prompt_is(
    prompt_length: int, uses_cache: bool
) -> None:
    prompt = torch.randint(5, VOCABULARY, (prompt_length,)).tolist()
    assert len(generate(decoder(), prompt, max_new_tokens=7, uses_cache=uses_cache)) == 7


def test_generation_stops_after_the_end_token_and_includes_it() -> None:
    model, prompt = decoder(), [1, 9, 30]
    unbounded = generate(model, prompt, max_new_tokens=12)
    end = unbounded[4]
    assert generate(model, prompt, max_new_tokens=12, end_ids=[end]) == unbounded[: unbounded.index(end) + 1]


@pytest.mark.parametrize("feed_forward", ["swiglu", "moe"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.9, top_k=20, top_p=0.9)], ids=["greedy", "sampled"]
)
def test_cache_gives_the_same_tokens_as_no_cache_also_beyond_the_positions_trained(
    feed_forward: str, sampling: Sampling
) -> None:
    model = decoder(feed_forward=feed_forward)
    with_cache, without = (
        generate(model, [1, 9, 30], max_new_tokens=60, sampling=sampling, seed=3, uses_cache=uses_cache)
        for uses_cache in (True, False)
    )
    assert with_cache == without
    assert len(set(with_cache)) > 1, "a model that repeats one token proves nothing"


def test_cached_hidden_states_equal_those_of_the_whole_text() -> None:
    model = decoder().double().eval()
    tokens_BT = torch.randint(5, VOCABULARY, (2, 15))
    caches = [KeyValueCache() for _ in model.layers]
    with torch.no_grad():
        whole = model.hidden_states(tokens_BT)
        begun = model.hidden_states_after(tokens_BT[:, :9], caches)
        rest = [model.hidden_states_after(tokens_BT[:, place : place + 1], caches) for place in range(9, 15)]
    # fp64; sums run over the same numbers in another order.
    torch.testing.assert_close(torch.cat([begun, *rest], dim=1), whole, rtol=0, atol=1e-12)


def test_greedy_generation_equals_the_argmax_of_a_full_pass_at_every_step() -> None:
    model, text = decoder(), [1, 9, 30]
    for token in generate(model, text, max_new_tokens=10):
        with torch.no_grad():
            assert int(model(torch.tensor([text]))[0, -1].argmax()) == token
        text = [*text, token]


def test_generation_leaves_the_model_in_training_mode_and_ignores_dropout() -> None:
    model = decoder(dropout=0.5).train()
    first, second = (generate(model, [1, 9], max_new_tokens=8) for _ in range(2))
    assert first == second
    assert model.training


def test_seed_decides_what_is_drawn() -> None:
    draws = [generate(decoder(), [1], max_new_tokens=12, sampling=Sampling(temperature=1.5), seed=s) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30).map(torch.tensor)


@settings(deadline=None, max_examples=60)
@given(LOGITS, st.floats(0.1, 3), st.integers(1, 40), st.floats(0.01, 1))
def test_sampling_keeps_the_fewest_likeliest_tokens_that_top_k_and_top_p_allow(
    logits_V: Tensor, temperature: float, top_k: int, top_p: float
) -> None:
    plain = (logits_V.double() / temperature).softmax(-1)
    cut = token_probabilities(logits_V, Sampling(temperature=temperature, top_k=top_k, top_p=top_p)).double()
    kept = cut > 0
    assert cut.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert 1 <= int(kept.sum()) <= top_k
    dropped_best = plain[~kept].max().item() if not kept.all() else 0.0
    # fp32 against fp64: likelihoods this close count as equal.
    assert plain[kept].min().item() >= dropped_best - 1e-6
    best = plain.sort(descending=True).values[:top_k]
    reached = best.cumsum(0) / best.sum()
    num_kept = int(kept.sum())
    assert num_kept == len(best) or reached[num_kept - 1].item() >= top_p - 1e-5, "too few: top_p is not reached"
    assert num_kept == 1 or reached[num_kept - 2].item() < top_p + 1e-5, "too many: fewer would have reached top_p"
    ratio = (cut[kept] / plain[kept]).double()
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=1e-3)


def test_draws_follow_the_probabilities() -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampling, rng = Sampling(temperature=1.0, top_k=3), torch.Generator().manual_seed(0)
    draws = torch.tensor([choose_token(logits_V, sampling, rng) for _ in range(4000)])
    shares = torch.bincount(draws, minlength=4) / 4000
    expected = token_probabilities(logits_V, sampling)
    assert expected[3] == 0
    # Four standard deviations of a share of 4,000 draws.
    assert (shares - expected).abs().max().item() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("form", ["roberta", "modern"])
def test_fill_mask_gives_the_likeliest_tokens_of_each_mask_in_order(form: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"form": form, "layers": 2, "width": 32, "heads": 4, "sequence_length": 16})
    model = build_model(config, VOCABULARY)
    assert isinstance(model, RobertaEncoder | ModernEncoder)
    tokens = [0, 9, MASK, 11, MASK, 2]
    first, second = fill_mask(model, tokens, mask_id=MASK, num_candidates=3)
    probabilities = model.eval()(torch.tensor([tokens])).softmax(-1)[0]
    for place, fillings in ((2, first), (4, second)):
        assert len(fillings) == 3
        assert fillings[0] == Filling(
            int(probabilities[place].argmax()), pytest.approx(probabilities[place].max().item(), rel=1e-5)
        )
        shares = [filling.probability for filling in fillings]
        assert shares == sorted(shares, reverse=True)


def test_what_cannot_be_done_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="the prompt has no token"):
        generate(decoder(), [], max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate(decoder(), [1], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"temperature=-1.*top_k=0.*top_p=1\.5"):
        Sampling(temperature=-1, top_k=0, top_p=1.5)
    encoder = build_model(ModelConfig(layers=1, width=8, heads=2, sequence_length=8), VOCABULARY)
    assert isinstance(encoder, RobertaEncoder)
    with pytest.raises(ValueError, match="no mask"):
        fill_mask(encoder, [0, 9, 2], mask_id=MASK)
