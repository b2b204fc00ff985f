import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from typer.testing import CliRunner

from core.distributed.workers import Workers
from core.settings.precision import choose_precision
from core.step.evaluation import evaluate
from core.step.holdout_masks import MASKING_RATE, MASKING_SEED
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.batches import BatchSource
from small_models import TEXTS, exported
from sweeps.commands.cli import app
from sweeps.trained_models.trained_model import load_trained

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("encoder"), "encoder")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("decoder"), "decoder")


def run(*arguments: object, fails: bool = False) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == (2 if fails else 0), done.output
    return done.output


def test_fill_mask_gives_what_the_pipeline_of_transformers_gives(encoder: Path) -> None:
    text = "the <mask> cat sees"
    theirs = pipeline("fill-mask", model=str(encoder), tokenizer=str(encoder), top_k=5)(text)
    (ours,) = json.loads(run("fill-mask", encoder, text, "--json"))
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    assert [one["token"] for one in ours] == [tokenizer.decode([one["token"]]) for one in theirs]
    # fp32 on both sides; transformers rounds nothing either.
    assert [one["probability"] for one in ours] == pytest.approx([one["score"] for one in theirs], rel=1e-4)


def test_generate_gives_the_greedy_text_of_transformers(decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    model = AutoModelForCausalLM.from_pretrained(decoder)
    inputs = tokenizer("<s>the red cat", return_tensors="pt", add_special_tokens=False)
    theirs = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ours = run("generate", decoder, "the red cat", "--max-new-tokens", 12)
    assert ours == tokenizer.decode(theirs, skip_special_tokens=True) + "\n"


def test_seed_decides_what_is_drawn(decoder: Path) -> None:
    def drawn(seed: int) -> str:
        return run("generate", decoder, "the", "--temperature", 1.5, "--seed", seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_evaluate_gives_the_metrics_of_training_on_all_of_a_corpus(tmp_path: Path, encoder: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 5))
    printed = json.loads(run("evaluate", encoder, "--corpus", corpus, "--json", "--all-tokens"))
    data = prepare(
        CorpusConfig(path=str(corpus), holdout=0.0),
        TokenizerConfig(kind="file", path=str(encoder / "tokenizer.json")),
        PackingConfig(sequence_length=load_trained(encoder).config.sequence_length),
        prepared_folder=tmp_path / "prepared",
        run=for_each_parcel_here,
    )
    workers = Workers()
    expected = evaluate(
        load_trained(encoder).model,
        BatchSource(data.train, data.vocabulary, masking_rate=MASKING_RATE, seed=MASKING_SEED, shuffle=False),
        workers,
        micro_batch_size=1,
        precision=choose_precision("fp32", workers.device),
        all_tokens=True,
    )
    assert isinstance(expected, dict)
    assert "holdout/all_tokens_accuracy" in expected
    # Other micro-batches add up in another order.
    assert printed == pytest.approx(expected, rel=1e-5)


def test_exported_copy_has_the_same_weights(tmp_path: Path, decoder: Path) -> None:
    run("export", decoder, tmp_path / "copy")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "copy", decoder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "exists; name a new folder" in run("export", decoder, tmp_path / "copy", fails=True)


def test_command_for_the_other_kind_of_model_is_named(encoder: Path, decoder: Path) -> None:
    assert "use pretune generate" in run("fill-mask", decoder, "the <mask>", fails=True)
    assert "use pretune fill-mask" in run("generate", encoder, "the", fails=True)


def test_text_without_a_mask_says_how_to_write_one(encoder: Path) -> None:
    assert "has no <mask>" in run("fill-mask", encoder, "the cat", fails=True)


def test_name_of_a_sweep_is_its_newest_results_with_a_model(tmp_path: Path, encoder: Path, decoder: Path) -> None:
    for number, (folder, model) in enumerate({"mine-1": encoder, "mine-2": decoder, "mine-3": None}.items()):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "summary.json").write_text('{"name": "mine", "data": {"folder": "gone"}}')
        os.utime(tmp_path / folder / "summary.json", (number, number))
        if model is not None:
            (tmp_path / folder / "best").symlink_to(model)
    said = run("generate", "mine", "the red cat", "--max-new-tokens", 5, "--results", tmp_path)
    assert said == run("generate", decoder, "the red cat", "--max-new-tokens", 5)
    assert "holds no trained model" in run("generate", "min", "the", "--results", tmp_path, fails=True)


def test_folder_without_a_model_says_what_to_give(tmp_path: Path) -> None:
    assert "holds no trained model" in run("evaluate", tmp_path, fails=True)
    assert "give --corpus" in run("evaluate", exported(tmp_path, "encoder"), fails=True)
