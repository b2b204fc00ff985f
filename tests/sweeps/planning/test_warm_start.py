"""What a training that begins with a model takes from its folder, and what of its file contradicts that."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.distributed.workers import Workers
from core.model_files.huggingface import import_huggingface
from core.model_files.initial_weights import fresh_model
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import load_tokenizer, train_tokenizer, vocabulary_of
from small_models import SMALL, TEXTS, exported
from sweeps.planning.warm_start import beginning_with_weights, expected_vocabulary, notes_of
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

FILE = """\
name: next
start: {weights_of: FOLDER}
corpus: {builtin: python-docs, holdout: 5%}
objective: causal_lm
budget: {trials: 1, tokens_per_trial: 10k}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("decoder"), "decoder")


def asked(folder: Path, *overrides: str) -> SweepConfig:
    return resolve_sweep(read_yaml(FILE.replace("FOLDER", str(folder))), overrides, source="next.yaml")


def begun(folder: Path, *overrides: str) -> SweepConfig:
    return beginning_with_weights(asked(folder, *overrides), folder.parent / "results")


def prepared(sweep: SweepConfig, folder: Path) -> PreparedCorpus:
    path = folder / "corpus.txt"
    path.write_text("\n".join(TEXTS * 5))
    corpus = sweep.corpus.model_copy(update={"path": str(path), "builtin": None})
    return prepare(corpus, sweep.tokenizer, sweep.packing, prepared_folder=folder, run=for_each_parcel_here)


def test_a_file_need_not_repeat_shape_and_tokenizer(folder: Path) -> None:
    sweep = begun(folder)
    there = import_huggingface(folder).config
    assert sweep.model == there
    assert (sweep.model.layers, sweep.packing.sequence_length) == (SMALL["layers"], there.sequence_length)
    assert sweep.tokenizer == TokenizerConfig(kind="file", path=str(folder / "tokenizer.json"))
    assert sweep.training.initial_weights == str(folder)
    assert expected_vocabulary(sweep) == vocabulary_of(load_tokenizer(folder / "tokenizer.json")).size
    assert notes_of(sweep) == [f"weights, shape and tokenizer of {folder}"]
    assert beginning_with_weights(sweep, folder) == sweep, "it is carried out once"


def test_what_is_carried_out_and_what_is_not_mean_the_same_when_written_and_read_again(folder: Path) -> None:
    for sweep in (asked(folder, "model.sequence_length=16"), begun(folder, "model.sequence_length=16")):
        again = resolve_sweep(read_yaml(dump_sweep(sweep)), source="again")
        assert again == sweep
        assert beginning_with_weights(again, folder) == begun(folder, "model.sequence_length=16")


def test_shorter_rows_leave_the_model_its_positions_and_longer_ones_add_rotary_positions(folder: Path) -> None:
    shorter, longer = (begun(folder, f"model.sequence_length={length}").model for length in (16, 64))
    assert (shorter.sequence_length, shorter.num_positions) == (16, SMALL["sequence_length"])
    assert (longer.sequence_length, longer.num_positions) == (64, 64)


def test_everything_that_contradicts_the_folder_is_named_at_once_with_what_to_do(folder: Path) -> None:
    overrides = (
        *("model.layers=3", "model.tied_embeddings=false", "model.width=32"),
        *("tokenizer.vocabulary=300", "search.model.layers.choice=[1, 2]"),
    )
    with pytest.raises(InputFault) as caught:
        begun(folder, *overrides)
    message = str(caught.value)
    assert f"model.layers=3 is not the 2 of {folder}; leave model.layers out" in message
    assert "model.tied_embeddings=False is not the True" in message
    assert "tokenizer: kind byte-bpe would be trained anew" in message
    assert "search.model.layers: the weights have a fixed shape; remove it from search" in message
    assert "model.width" not in message, "32 is what the folder has"


def test_a_named_tokenizer_must_give_the_ids_of_the_models_own(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path / "same.json")
    kind = "tokenizer.kind=file"
    assert begun(folder, kind, f"tokenizer.path={tmp_path / 'same.json'}").model.layers == 2
    train_tokenizer(TokenizerConfig(vocabulary=264, min_frequency=1), TEXTS).save(str(tmp_path / "other.json"))
    with pytest.raises(InputFault, match=r"so the weights would not match its tokens; leave tokenizer out"):
        begun(folder, kind, f"tokenizer.path={tmp_path / 'other.json'}")


def test_an_encoder_is_begun_with_likewise_and_has_no_more_positions_than_it_learnt(tmp_path: Path) -> None:
    folder = exported(tmp_path, "encoder")
    masked = "objective=masked_lm"
    assert begun(folder, masked).model == import_huggingface(folder).config
    with pytest.raises(InputFault, match=r"model.sequence_length=64 is above the 32 learned positions"):
        begun(folder, masked, "model.sequence_length=64")
    with pytest.raises(InputFault, match=r"model.family=decoder is not the encoder of"):
        begun(folder)


def llama_of_transformers(folder: Path, *, padded_to: int) -> LlamaForCausalLM:
    """Saved by transformers itself: half precision, several files, a vocabulary padded to a round number."""
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=300, min_frequency=1, special_tokens="minimind"), TEXTS)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=padded_to,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="30KB")
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    return model


def test_a_llama_that_transformers_saved_is_begun_with_and_computes_the_same(tmp_path: Path) -> None:
    theirs = llama_of_transformers(tmp_path / "llama", padded_to=384)
    assert not (tmp_path / "llama" / "model.safetensors").exists(), "it is one file: this proves less than it says"
    sweep = begun(tmp_path / "llama")
    assert (sweep.model.kv_heads, sweep.model.feed_forward_width, sweep.model.tied_embeddings) == (2, 80, False)
    data = prepared(sweep, tmp_path)
    assert data.vocabulary.size < 384
    ours = fresh_model(sweep.run_config(), data, Workers().device).eval()
    tokens_BT = torch.randint(3, data.vocabulary.size, (2, 20))
    with torch.no_grad():
        expected = theirs.float()(tokens_BT).logits[..., : data.vocabulary.size]
        # fp32 on both sides, of the same bf16 weights.
        torch.testing.assert_close(ours(tokens_BT), expected, rtol=1e-4, atol=1e-5)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rows than ids": ({"vocab_size": 200}, r"its tokenizer has ids up to \d+ and its weights 200 rows"),
    "another end of text": ({"eos_token_id": 0}, r"its config.json ends a text with id 0 and its tokenizer with 2"),
    "another kind of model": (
        {"model_type": "gpt2"},
        r"holds a model of type 'gpt2', which pretune does not support; use one of roberta, modernbert",
    ),
    "a foreign part": (
        {"attention_bias": True},
        r"does not support the model in .*: attention_bias=True instead of False",
    ),
}


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_a_folder_whose_parts_do_not_belong_together_is_refused_before_any_training(
    case: str, folder: Path, tmp_path: Path
) -> None:
    changes, words = FAULTS[case]
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(InputFault, match=words):
        begun(tmp_path / "model")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model.safetensors", "it has no model.safetensors"),
        ("tokenizer.json", "tokenizer.json does not exist; give a folder with the tokenizer.json"),
        ("config.json", r"holds no model \(config.json\)"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_with_its_name(
    missing: str, words: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(InputFault, match=words):
        begun(tmp_path / "model")


def test_a_name_that_nothing_has_says_what_to_run(folder: Path) -> None:
    with pytest.raises(
        InputFault, match=r"holds no finished sweep or training called earlier of size laptop\. Run it first"
    ):
        begun(Path("earlier"))
