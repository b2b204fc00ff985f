"""A user's class trains as a model of ours with the same maths does."""

from pathlib import Path

import pytest
import torch
from given_classes import EXAMPLES, line_of, permitted, run_of, written

from core.models.given_class import GivenModel, build_given
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.step.objectives import add_gradients, summed_loss
from core.user_code.code_places import UserCodeError
from data_pipeline.tokens.batches import Batch

VOCABULARY = 61
FP32 = Precision("fp32", "cpu")


def batch_of(*, share: float, rows: int = 3, length: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    positions_P = torch.rand(rows * length, generator=generator).lt(share).nonzero().flatten()
    return Batch(
        inputs_BT=torch.randint(5, VOCABULARY, (rows, length), generator=generator),
        positions_P=positions_P,
        labels_P=torch.randint(5, VOCABULARY, positions_P.shape, generator=generator),
        document_ids_BT=None,
        num_tokens=rows * length,
        most_predicted=rows * length,
    )


def example(path: str, arguments: dict[str, int]) -> GivenModel:
    code = permitted(path, EXAMPLES)
    torch.manual_seed(0)
    return build_given(run_of(code, arguments).model, VOCABULARY, pad_id=1)


@pytest.mark.parametrize("share", [0.15, 0.95])
@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("model_no_feed.py:NoFeed", {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2}),
        ("gated_mixer.py:GatedMixer", {"width": 16}),
    ],
    ids=["fast path", "simple path"],
)
def test_gradients_are_those_of_autograd(path: str, arguments: dict[str, int], share: float) -> None:
    model, batch = example(path, arguments), batch_of(share=share)
    loss, count = summed_loss(model, batch, FP32)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    # Five positions at a time: the fast path sums over chunks.
    found, auxiliary = add_gradients(model, batch, FP32, scale=2.0, positions_at_once=5)
    assert count == len(batch.labels_P)
    assert auxiliary is None
    torch.testing.assert_close(found, loss.detach().double(), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2.0 * expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_model_no_feed_is_our_decoder_without_feed_forward() -> None:
    given = example("model_no_feed.py:NoFeed", {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2})
    form = {"family": "decoder", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "feed_forward": "none"}
    ours = build_model(ModelConfig.model_validate(form), VOCABULARY)
    names = {"attention_norm": "norm", "attention.qkv": "qkv", "attention.out": "out", "final_norm": "norm"}
    theirs = dict(given.module.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            for our_name, their_name in names.items():
                name = name.replace(our_name, their_name)
            parameter.copy_(theirs.pop(name))
    assert not theirs
    ids_BT = torch.tensor([[0] * 7 + [1] * 9] * 3, dtype=torch.int32)
    tokens_BT = batch_of(share=0.5).inputs_BT
    for documents in (None, ids_BT):
        expected = ours.logits(ours.hidden_states(tokens_BT, documents))
        found = given.logits(given.hidden_states(tokens_BT, documents))
        # fp32 kernels of attention add in another order.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "arguments", "at", "words"),
    [
        ("class Mine(Base): pass", {"widht": 3}, "def __init__", "takes no argument widht; its arguments are"),
        (
            "class Mine(Base):\n    def __init__(self, vocabulary_size, depth): pass",
            {},
            "depth",
            "needs the argument depth",
        ),
        ("class Mine:\n    def __init__(self, vocabulary_size): pass", {}, "", "is no torch.nn.Module"),
        (
            "class Mine(Base):\n    def __init__(self, vocabulary_size):\n        raise OSError('no')",
            {},
            "raise OSError",
            "raised OSError: no",
        ),
        ("class Mine(Base):\n    def hidden_states(self, a, b): pass", {}, "def hidden_states", "and no logits"),
    ],
)
def test_a_class_that_does_not_build_is_one_line_with_its_place(
    tmp_path: Path, text: str, arguments: dict[str, int], at: str, words: str
) -> None:
    file = written(tmp_path, text)
    code = permitted("mine.py:Mine", tmp_path)
    with pytest.raises(UserCodeError, match=words) as raised:
        build_given(run_of(code, arguments).model, VOCABULARY, pad_id=1)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{file}:{line_of(file, at)}: " if at else str(file))


def test_a_class_receives_what_its_constructor_names(tmp_path: Path) -> None:
    text = """
    class Mine(Base):
        def __init__(self, vocabulary_size, sequence_length, is_causal, pad_id, width=4):
            super().__init__(vocabulary_size, width)
            self.said = (vocabulary_size, sequence_length, is_causal, pad_id, width)
    """
    written(tmp_path, text)
    model = build_given(run_of(permitted("mine.py:Mine", tmp_path), {"width": 8}).model, VOCABULARY, pad_id=7)
    assert model.module.said == (VOCABULARY, 16, True, 7, 8)


def test_running_out_of_memory_is_no_fault_of_the_class(tmp_path: Path) -> None:
    written(
        tmp_path, "class Mine(Base):\n    def mix(self, x):\n        raise torch.OutOfMemoryError('Tried to allocate')"
    )
    model = build_given(run_of(permitted("mine.py:Mine", tmp_path)).model, VOCABULARY, pad_id=1)
    with pytest.raises(torch.OutOfMemoryError):
        model.hidden_states(torch.zeros(1, 4, dtype=torch.int64))
