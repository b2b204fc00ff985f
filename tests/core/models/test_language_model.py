"""What every model promises, over all forms: who sees whom, where positions start, what a recomputed layer gives."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig

PAD, VOCABULARY = 1, 50
FORMS = {
    "roberta": {"form": "roberta"},
    "modern": {"form": "modern"},
    "llama": {"family": "decoder", "kv_heads": 2},
    "roberta-memory": {"form": "roberta", "feed_forward": "memory"},
    "llama-moe": {"family": "decoder", "feed_forward": "moe"},
    "llama-none": {"family": "decoder", "feed_forward": "none"},
}
# Sums over the same numbers in another order, in fp64.
EXACT = {"rtol": 0.0, "atol": 1e-11}


def build(form: str, **settings: object) -> LanguageModel:
    torch.manual_seed(0)
    shape: dict[str, object] = {"layers": 2, "width": 32, "heads": 4, "sequence_length": 24}
    shape |= {"memory": {"entries": 64, "entries_per_token": 4}}
    return build_model(ModelConfig.model_validate(shape | FORMS[form] | settings), VOCABULARY, pad_id=PAD)


def tokens(num_rows: int, num_tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(5, VOCABULARY, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_document_gives_what_it_gives_alone(form: str) -> None:
    model = build(form).double().eval()
    first, second, third = (tokens(1, length, seed) for seed, length in enumerate((7, 4, 9)))
    document_ids_BT = torch.tensor([[0] * 7 + [1] * 4 + [2] * 9], dtype=torch.int32)
    packed = model(torch.cat((first, second, third), dim=1), document_ids_BT)
    alone = torch.cat([model(row) for row in (first, second, third)], dim=1)
    torch.testing.assert_close(packed, alone, **EXACT)


@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing_for_the_tokens_before_it(form: str, has_documents: bool) -> None:
    model = build(form).double().eval()
    row = tokens(1, 9)
    padded = torch.cat((row, torch.full((1, 6), PAD)), dim=1)
    document_ids_BT = torch.zeros_like(padded, dtype=torch.int32) if has_documents else None
    torch.testing.assert_close(model(padded, document_ids_BT)[:, :9], model(row), **EXACT)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_decoder_cannot_see_the_future_and_an_encoder_can(precision: torch.dtype) -> None:
    sees = {}
    for form in FORMS:
        model = build(form).eval()
        row = tokens(1, 20)
        changed = row.clone()
        changed[0, 15] = (row[0, 15] - 4) % (VOCABULARY - 5) + 5
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32), torch.no_grad():
            sees[form] = not torch.equal(model(row)[:, :15], model(changed)[:, :15])
    assert sees == {form: form.startswith(("roberta", "modern")) for form in FORMS}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(form: str, precision: torch.dtype) -> None:
    gradients = []
    for is_on in (False, True):
        model = build(form)
        model.set_activation_checkpointing(is_on)
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            loss = model(tokens(3, 20)).float().logsumexp(-1).mean()
        balance = model.auxiliary_loss()
        (loss if balance is None else loss + balance).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept is not None
        assert recomputed is not None
        assert torch.equal(kept, recomputed)


@pytest.mark.parametrize("form", FORMS)
def test_bf16_logits_stay_near_those_of_fp32(form: str) -> None:
    model = build(form).eval()
    row = tokens(2, 20)
    with torch.no_grad():
        exact = model(row)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(row).float()
    # Some dozen roundings to 8 bits, adding up like a random walk.
    assert (rounded - exact).abs().max().item() < 0.1 * exact.abs().max().item()


@pytest.mark.parametrize("form", FORMS)
def test_logits_of_selected_positions_are_those_of_all(form: str) -> None:
    model = build(form).double().eval()
    row = tokens(2, 20)
    positions_P = torch.tensor([3, 19, 20, 38])
    selected = model.logits(model.hidden_states(row).flatten(0, 1)[positions_P])
    torch.testing.assert_close(selected, model(row).flatten(0, 1)[positions_P], **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_names_every_tensor_once(form: str) -> None:
    model = build(form)
    storages = [tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()]
    assert len(storages) == len(set(storages))
    assert model.num_parameters() == sum(tensor.numel() for tensor in model.state_dict().values())


def test_the_same_seed_gives_the_same_weights_and_dropout_is_off_unless_asked_for() -> None:
    assert ModelConfig().dropout == 0.0
    first, second = build("roberta"), build("roberta")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    row = tokens(1, 9)
    assert torch.equal(first(row), first(row)), "a model in training mode is random although dropout is off"
    noisy = build("roberta", dropout=0.3)
    assert not torch.equal(noisy(row), noisy(row))


def test_a_row_longer_than_the_learned_positions_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"25 tokens is longer than the 24 learned positions.*max_sequence_length"):
        build("roberta")(tokens(1, 25))


def test_head_of_its_own_has_its_own_parameters() -> None:
    tied, untied = build("llama"), build("llama", tied_embeddings=False)
    assert untied.num_parameters() - tied.num_parameters() == VOCABULARY * 32


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_runs_on_tensors_without_values(form: str, precision: str) -> None:
    with FakeTensorMode():
        model = build(form)
        document_ids_BT = torch.zeros(2, 20, dtype=torch.int32)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(torch.zeros(2, 20, dtype=torch.long), document_ids_BT).float().sum()
        loss.backward()
        assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "router" not in name)
