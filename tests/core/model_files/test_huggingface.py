"""Parity with Hugging Face transformers: the same weights give the same logits, loss and gradients, both ways."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from core.model_files.huggingface import export_huggingface, import_huggingface
from core.models.encoder import RobertaEncoder
from core.models.huggingface_names import from_huggingface, to_huggingface
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from data_pipeline.tokens.tokenizer import Vocabulary

transformers = pytest.importorskip("transformers", reason="no transformers (pip install transformers)")

CONFIGS = {
    "roberta": ModelConfig(layers=3, width=48, heads=4, sequence_length=40),
    "roberta-untied": ModelConfig(layers=2, width=48, heads=4, sequence_length=40, tied_embeddings=False),
    "modern": ModelConfig(form="modern", layers=3, width=64, heads=4, sequence_length=40),
    "modern-silu": ModelConfig(
        form="modern", layers=2, width=64, heads=4, sequence_length=40, feed_forward="swiglu", rotary_base=160_000
    ),
    "llama": ModelConfig(family="decoder", layers=3, width=64, heads=4, kv_heads=2, sequence_length=40),
    "llama-ungrouped": ModelConfig(
        family="decoder", layers=2, width=64, heads=4, sequence_length=40, tied_embeddings=False, feed_forward="geglu"
    ),
}
VOCABULARY = 300
AUTO = {False: "AutoModelForMaskedLM", True: "AutoModelForCausalLM"}

# Two implementations add the same fp32 numbers in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the starry heavens above me and the moral law within me"] * 4, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(size=VOCABULARY, pad_id=1, unk_id=3, bos_id=0, eos_id=2, mask_id=4, special_ids=(0, 1, 2, 3, 4))


@pytest.fixture(params=CONFIGS, scope="module")
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def random_model(config: ModelConfig) -> LanguageModel:
    """Weights far from their start, so that biases, norms and position tables matter to the result."""
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # Both libraries keep the vector of padding at zero.
    if isinstance(model.tokens.padding_idx, int):
        with torch.no_grad():
            model.tokens.weight[model.tokens.padding_idx] = 0
    if isinstance(model, RobertaEncoder):
        with torch.no_grad():
            model.positions.weight[model.pad_id] = 0
    return model


def rows() -> tuple[Tensor, Tensor]:
    """Token ids of two rows and which of them are no padding: the second row is shorter."""
    inputs_BT = torch.randint(5, VOCABULARY, (2, 33), generator=torch.Generator().manual_seed(1))
    inputs_BT[1, 20:] = 1
    return inputs_BT, (inputs_BT != 1).long()


def exported(
    model: LanguageModel, config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, folder: Path
) -> nn.Module:
    export_huggingface(model, config, tokenizer_path, vocabulary, folder)
    auto = getattr(transformers, AUTO[config.is_causal])
    loaded, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert type(loaded).__name__ in ("RobertaForMaskedLM", "ModernBertForMaskedLM", "LlamaForCausalLM")
    return loaded.train()


def assert_parity(ours: LanguageModel, theirs: nn.Module, config: ModelConfig) -> None:
    """The same logits, loss and gradients on the same rows, one of them padded."""
    inputs_BT, is_real_BT = rows()
    their_logits = theirs(input_ids=inputs_BT, attention_mask=is_real_BT).logits
    our_logits = ours(inputs_BT)
    real = is_real_BT.bool()
    difference = (our_logits - their_logits)[real].abs().max().item()
    assert difference < TOLERANCE * their_logits.abs().max().item(), f"logits differ by {difference}"

    labels = torch.where(real, inputs_BT, -100).flatten()
    our_loss, their_loss = (F.cross_entropy(logits.flatten(0, 1), labels) for logits in (our_logits, their_logits))
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=TOLERANCE)

    our_loss.backward()
    their_loss.backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = from_huggingface(their_gradients, config)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        difference = (parameter.grad - expected[name]).abs().max().item()
        assert difference < TOLERANCE * max(1.0, expected[name].abs().max().item()), f"{name}: {difference}"


def test_exported_folder_loads_with_transformers_and_gives_the_same_logits_loss_and_gradients(
    config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    ours = random_model(config)
    assert_parity(ours, exported(ours, config, tokenizer_path, vocabulary, tmp_path), config)


MUP = {"parametrization": "mup", "mup_base_width": 16}


@pytest.mark.parametrize("form", ["roberta", "modern", "llama-ungrouped", "llama"])
def test_a_model_with_mup_is_exported_as_one_of_the_standard_form_with_the_same_logits(
    form: str, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    depth = {} if form == "roberta" else {"mup_base_layers": 1}
    config = CONFIGS[form].model_copy(update=MUP | depth)
    torch.manual_seed(0)
    ours = build_model(config, VOCABULARY)  # As it begins, so that its factors are all that distinguishes it.
    assert_parity(ours, exported(ours, config, tokenizer_path, vocabulary, tmp_path), config)
    again = import_huggingface(tmp_path)
    assert again.config.parametrization == "standard"
    inputs_BT, _ = rows()
    assert torch.equal(again.model(inputs_BT), ours.eval()(inputs_BT))


def test_model_of_transformers_imports_and_gives_the_same_logits_loss_and_gradients(
    config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    theirs = exported(random_model(config), config, tokenizer_path, vocabulary, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = import_huggingface(tmp_path / "theirs")
    assert loaded.vocabulary_size == VOCABULARY
    assert_parity(loaded.model.train(), theirs, config)


def test_there_and_back_keeps_every_tensor_bit_for_bit(config: ModelConfig) -> None:
    state = random_model(config).state_dict()
    back = from_huggingface(to_huggingface(state, config), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_packed_documents_give_the_logits_that_transformers_gives_each_alone(
    config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    ours = random_model(config)
    theirs = exported(ours, config, tokenizer_path, vocabulary, tmp_path).eval()
    first, second = (torch.randint(5, VOCABULARY, (1, length)) for length in (9, 14))
    document_ids_BT = torch.tensor([[0] * 9 + [1] * 14], dtype=torch.int32)
    with torch.no_grad():
        packed = ours.eval()(torch.cat((first, second), dim=1), document_ids_BT)
        alone = torch.cat([theirs(input_ids=row).logits for row in (first, second)], dim=1)
    assert (packed - alone).abs().max().item() < TOLERANCE * alone.abs().max().item()


@pytest.mark.parametrize("kind", ["moe", "memory", "none", "swiglu"])
def test_model_that_transformers_has_no_class_for_says_so_before_writing(
    kind: str, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config = ModelConfig.model_validate({"layers": 1, "width": 16, "heads": 2, "feed_forward": kind})
    model = build_model(CONFIGS["roberta"], VOCABULARY)
    with pytest.raises(ValueError, match=f"feed_forward: {kind} cannot be exported.*RobertaForMaskedLM"):
        export_huggingface(model, config, tokenizer_path, vocabulary, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_exported_tokenizer_knows_its_special_tokens_and_puts_them_around_a_text(
    config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    export_huggingface(random_model(config), config, tokenizer_path, vocabulary, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the starry heavens"
    ids = Tokenizer.from_file(str(tokenizer_path)).encode(text, add_special_tokens=False).ids
    assert tokenizer(text).input_ids == [0, *ids, *([] if config.is_causal else [2])]
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 2, 1)
    assert (tokenizer.mask_token, tokenizer.unk_token) == ("<mask>", "<unk>")
    assert tokenizer.model_max_length == config.num_positions


def test_fill_mask_pipeline_of_transformers_runs_on_an_exported_encoder(
    tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config = CONFIGS["roberta"]
    export_huggingface(random_model(config), config, tokenizer_path, vocabulary, tmp_path)
    answers = transformers.pipeline("fill-mask", model=str(tmp_path))("the <mask> heavens", top_k=3)
    assert len(answers) == 3


def test_import_names_every_part_that_is_foreign(tmp_path: Path) -> None:
    transformers.LlamaConfig(attention_bias=True, mlp_bias=True, hidden_act="relu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"activation='relu'.*attention_bias=True.*mlp_bias=True"):
        import_huggingface(tmp_path)
