"""Adapters on disk are PEFT's: it loads ours and we load its, with the same logits; another base is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_huggingface import AUTO, CONFIGS, TOLERANCE, random_model, rows, tokenizer_path, vocabulary
from torch import Tensor

from core.layers.low_rank import LowRankLinear
from core.model_files.adapter_folder import import_adapted, save_adapter
from core.model_files.huggingface import export_huggingface
from core.models.language_model import LanguageModel
from core.models.lora import add_lora, merge_lora
from core.settings.model_config import ModelConfig
from core.settings.training_config import LoraConfig
from data_pipeline.tokens.tokenizer import Vocabulary

transformers = pytest.importorskip("transformers", reason="no transformers (pip install transformers)")

__all__ = ["tokenizer_path", "vocabulary"]  # fixtures

TARGETS = {
    "roberta": ["all-linear", "query,value", "output.dense"],
    "modern": ["all-linear", "Wqkv", "mlp.Wo"],
    "llama": ["all-linear", "q_proj,v_proj", "gate_proj,down_proj"],
}
CASES = [(form, targets) for form, of_form in TARGETS.items() for targets in of_form]


def a_base(config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, folder: Path) -> LanguageModel:
    model = random_model(config)
    export_huggingface(model, config, tokenizer_path, vocabulary, folder)
    return model


def adapted(model: LanguageModel, config: ModelConfig, lora: LoraConfig) -> LanguageModel:
    add_lora(model, config, lora)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRankLinear):
                module.lora_B.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def peft() -> Any:
    """PEFT, whose import takes seconds that each process of a test run would spend."""
    return pytest.importorskip("peft", reason="no peft (pip install peft)")


def assert_equal_logits(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max().item() < TOLERANCE * theirs.abs().max().item()


@pytest.mark.parametrize(("form", "targets"), CASES)
def test_peft_loads_our_adapter_with_the_same_logits_and_so_do_we(
    peft: Any, form: str, targets: str, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config, lora = CONFIGS[form], LoraConfig(rank=4, alpha=6, targets=targets)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model = adapted(a_base(config, tokenizer_path, vocabulary, base), config, lora)
    save_adapter(model, config, lora, base, folder)
    inputs_BT = rows()[0][:1]
    with torch.no_grad():
        ours = model(inputs_BT)
        their_base = getattr(transformers, AUTO[config.is_causal]).from_pretrained(base)
        untouched = their_base(input_ids=inputs_BT).logits
        theirs = peft.PeftModel.from_pretrained(their_base, folder).eval()
        assert_equal_logits(ours, theirs(input_ids=inputs_BT).logits)
        assert (untouched - ours).abs().max() > 0.1
        count = sum("lora_A" in name for name, _ in theirs.named_parameters())
        assert count == sum(len(module.parts) for module in model.modules() if isinstance(module, LowRankLinear))

        loaded, its_base = import_adapted(folder)
        assert its_base == base
        assert_equal_logits(loaded.model(inputs_BT), ours)

        # transformers alone, with the merged model
        merge_lora(model)
        export_huggingface(model, config, tokenizer_path, vocabulary, tmp_path / "merged")
        merged = getattr(transformers, AUTO[config.is_causal]).from_pretrained(tmp_path / "merged")
        assert (merged(input_ids=inputs_BT).logits - ours).abs().max().item() < 1e-5 * ours.abs().max().item()


@pytest.mark.parametrize("form", TARGETS)
def test_adapter_that_peft_made_gives_the_same_logits_here(
    peft: Any, form: str, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config, base = CONFIGS[form], tmp_path / "base"
    a_base(config, tokenizer_path, vocabulary, base)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[form][1].split(","), use_rslora=True)
    theirs = peft.get_peft_model(getattr(transformers, AUTO[config.is_causal]).from_pretrained(base), settings)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    inputs_BT = rows()[0][:1]
    with torch.no_grad():
        ours = import_adapted(tmp_path / "adapter")[0].model(inputs_BT)
        assert_equal_logits(ours, theirs.eval()(input_ids=inputs_BT).logits)


@pytest.fixture
def saved(tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path) -> Path:
    config, lora = CONFIGS["llama"], LoraConfig(rank=4)
    model = a_base(config, tokenizer_path, vocabulary, tmp_path / "base")
    save_adapter(adapted(model, config, lora), config, lora, tmp_path / "base", tmp_path / "adapter")
    return tmp_path / "adapter"


def change_settings(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_base_that_is_gone_is_named_with_the_remedy(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"belongs to the model .*base, but no folder with config.json.*put it back, or"
    ):
        import_adapted(saved)
    change_settings(saved, base_model_name_or_path=str(tmp_path / "elsewhere"))
    assert import_adapted(saved)[1] == tmp_path / "elsewhere"


def test_base_with_other_weights_is_refused_by_its_hash(saved: Path, tmp_path: Path) -> None:
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"trained on other weights than those in .*base: their SHA-256 began with"):
        import_adapted(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 48}, r"layers.0.mlp.down_proj is 64 x 192 there and 48 x 128 here"),
        ({"layers": 2}, r"it adapts model.layers.2.mlp.down_proj, which the model lacks; .* and 4 more"),
    ],
)
def test_base_of_another_shape_is_refused_where_no_hash_is_known(
    change: dict[str, int], said: str, saved: Path, tokenizer_path: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    other = CONFIGS["llama"].model_copy(update=change)
    a_base(other, tokenizer_path, vocabulary, tmp_path / "other")
    file = saved / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})  # as PEFT writes it
    change_settings(saved, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=said):
        import_adapted(saved)


def test_kinds_of_adapters_that_are_not_known_are_refused_by_name(saved: Path) -> None:
    change_settings(saved, use_dora=True, bias="all")
    with pytest.raises(
        ValueError, match=r"bias='all', use_dora=True, which is not LoRA as pretune supports it; merge it"
    ):
        import_adapted(saved)
