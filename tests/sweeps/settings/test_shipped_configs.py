"""The files in sweeps/configs: at every size they load, and at full size they are the systems that they stand for."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForMaskedLM, RobertaModel

from core.costs.parameter_counts import parameter_counts
from core.models.model_factory import build_model
from core.settings.schedule import StepPlan, learning_rate
from sweeps.analysis.fairness import remarks
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.finetuning.finetune_file import FINETUNING, dump_finetuning
from sweeps.settings.settings_file import load_settings, resolve_settings
from sweeps.settings.stage_config import steps_of
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

CONFIGS = Path(__file__).parents[3] / "sweeps/configs"
CHAINS = {
    "A": ("traffic", "traffic-train"),
    "B": ("minimind", "minimind-train"),
    "C": ("chinese", "chinese-train"),
    "D": ("kant", "kant-train"),
    "E": ("epoch", "epoch-train"),
}
SFT = ("chinese-sft", "chinese-sft-train")
"""What begins with a model says neither its shape nor its tokenizer."""
CLASSES = "traffic-classify"
"""The last step of A is a file of another kind."""
FILES = [*(name for chain in CHAINS.values() for name in chain), *SFT]


def load(name: str, size: str = "full", *overrides: str) -> SweepConfig:
    return load_sweep_file(CONFIGS / f"{name}.yaml", [f"size={size}", *overrides])


def num_parameters(sweep: SweepConfig) -> int:
    with torch.device("meta"):
        return build_model(sweep.run_config().model, sweep.tokenizer.vocabulary).num_parameters()


def numbers_in(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_file_belongs_to_a_chain_and_every_chain_is_there() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*FILES, CLASSES, "minimind-lora", "quickstart"}


@pytest.mark.parametrize("size", ["laptop", "full"])
@pytest.mark.parametrize("name", FILES)
def test_each_size_loads_and_its_resolved_form_means_the_same(name: str, size: str) -> None:
    sweep = load(name, size)
    assert sweep.size == size
    assert resolve_sweep(read_yaml(dump_sweep(sweep)), source=name) == sweep


@pytest.mark.parametrize("size", ["laptop", "full"])
@pytest.mark.parametrize("name", FILES)
def test_no_shipped_sweep_makes_a_comparison_that_would_mislead(name: str, size: str) -> None:
    sweep = load(name, size)
    rungs = rung_tokens(sweep.early_stopping, sweep.budget.tokens_per_trial) if sweep.search else ()
    assert [remark for remark in remarks(sweep, rungs=rungs) if remark.verdict != "fair"] == []


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_chain_trains_one_model_on_one_corpus_with_one_tokenizer(chain: tuple[str, str]) -> None:
    for size in ("laptop", "full"):
        sweep, training = (load(name, size) for name in chain)
        assert (sweep.corpus, sweep.tokenizer) == (training.corpus, training.tokenizer)
        # Rows may differ, and the memory of the variants is none of the baseline's.
        rows = {"sequence_length": 128, "max_sequence_length": None, "memory": sweep.model.memory}
        assert sweep.model.model_copy(update=rows) == training.model.model_copy(update=rows)


@pytest.mark.parametrize("name", CHAINS["A"])
def test_a_has_the_parameters_of_the_same_roberta_in_transformers(name: str) -> None:
    sweep = load(name)
    config = RobertaConfig(
        vocab_size=65_541,
        num_hidden_layers=6,
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=4 * 384,
        max_position_embeddings=sweep.model.num_positions + 2,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        theirs = numbers_in(RobertaForMaskedLM(config))
    assert sweep.tokenizer.vocabulary == 65_541
    assert num_parameters(sweep) == theirs


@pytest.mark.parametrize("name", [*CHAINS["B"], *CHAINS["C"], *CHAINS["E"]])
def test_b_c_and_e_have_the_25_829_888_parameters_of_minimind(name: str) -> None:
    config = LlamaConfig(
        vocab_size=6400,
        num_hidden_layers=8,
        hidden_size=512,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=1408,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        theirs = numbers_in(LlamaForCausalLM(config))
    assert num_parameters(load(name)) == theirs == 25_829_888


@pytest.mark.parametrize("name", CHAINS["D"])
def test_d_has_83_504_416_parameters_and_84_095_008_with_the_pooler_that_its_author_counted(name: str) -> None:
    with torch.device("meta"):
        pooler = RobertaModel(RobertaConfig(hidden_size=768)).pooler
    ours = num_parameters(load(name))
    assert ours == 83_504_416
    assert ours + numbers_in(pooler) == 84_095_008


def test_b_trains_on_1_024_rows_a_step_along_a_cosine_to_zero_without_warm_up() -> None:
    (run,) = load("minimind-train").stage_runs()
    training = run.training
    assert (training.batch_size, training.micro_batch_size, training.epochs) == (128 * 8, 128, 3.0)
    assert (training.learning_rate, training.clip) == (2e-4, 1.0)
    assert learning_rate(training, tokens=0, total_tokens=100) == 2e-4
    assert learning_rate(training, tokens=100, total_tokens=100) == pytest.approx(0, abs=1e-12)


def test_e_has_the_learning_rate_that_its_log_ends_with() -> None:
    (run,) = load("epoch-train").stage_runs()
    # lr/10 + lr/2 (1 + cos(pi step/steps)) of 5e-4, as logged at step 44,100 of 44,160; the share left is rounded to
    # ten digits in the file.
    at_the_end = learning_rate(run.training, tokens=44_100, total_tokens=44_160)
    assert at_the_end == pytest.approx(5.0002277e-05, rel=2e-5)
    assert learning_rate(run.training, tokens=0, total_tokens=44_160) == pytest.approx(1.1 * 5e-4)


STAGES_OF_A = """\
name: a
corpus: {path: packets.csv, text: text}
tokenizer: {kind: words, vocabulary: 65541}
model: {family: encoder, layers: 6, width: 384, heads: 6}
objective: {masked_lm: {masking_rate: 0.15}}
training: {schedule: linear, warmup: 10%}
stages:
  - {sequence_length: 256, batch_size: 64, micro_batch_size: 4, epochs: 3}
  - {sequence_length: 512, batch_size: 32, micro_batch_size: 2, epochs: 3}
"""


def test_fine_tuning_of_c_begins_with_its_own_pretrained_model_and_repeats_nothing_of_it() -> None:
    for size in ("laptop", "full"):
        sweep, training = (load(name, size) for name in SFT)
        assert sweep.corpus == training.corpus
        for one in (sweep, training):
            assert one.start is not None
            assert one.start.weights_of == CHAINS["C"][-1]
            assert one.model.model_fields_set <= {"family", "sequence_length"}
            assert "tokenizer" not in one.model_fields_set
            assert (one.packing.rows, one.objective.sft is not None) == ("conversations", True)
        assert training.start is not None
        assert training.start.settings_of == sweep.name


@pytest.mark.parametrize("size", ["laptop", "full"])
def test_telling_classes_apart_begins_with_the_model_of_a_and_takes_rows_that_this_can_read(size: str) -> None:
    config = load_settings(CONFIGS / f"{CLASSES}.yaml", FINETUNING, [f"size={size}"])
    assert resolve_settings(read_yaml(dump_finetuning(config)), FINETUNING, source=CLASSES) == config
    assert config.size == size
    assert config.start.weights_of == CHAINS["A"][-1]
    assert config.corpus.max_tokens is not None
    assert config.corpus.max_tokens <= load(CHAINS["A"][-1], size).model.num_positions
    assert len(config.settings().learning_rates) > 1  # A step that is swept.


def test_a_stage_has_the_steps_that_system_a_logged() -> None:
    sweep = resolve_sweep(read_yaml(STAGES_OF_A), source="a.yaml")
    first, second = sweep.stage_runs()
    assert steps_of(first, num_rows=18_092, num_tokens=18_092 * 256) == StepPlan(
        num_steps=848, warmup_steps=84, annealing_steps=763, micro_batches_per_worker=4_523, accumulation=16
    )
    assert (first.model.sequence_length, second.model.sequence_length) == (256, 512)
    # Positions of the longest stage from the beginning, so that the second finds them trained or at least there.
    assert first.model.num_positions == second.model.num_positions == 512
    assert sweep.model.sequence_length == 512


@pytest.mark.parametrize("size", ["laptop", "full"])
def test_adapters_of_minimind_load_at_every_size_and_their_resolved_form_means_the_same(size: str) -> None:
    sweep = load("minimind-lora", size)
    assert resolve_sweep(read_yaml(dump_sweep(sweep)), source="minimind-lora") == sweep
    assert sweep.lora_faults(load("minimind-train", size).run_config().model) == []


def test_adapters_at_full_size_leave_the_25_829_888_parameters_of_their_base_as_they_are() -> None:
    base = load("minimind-train").run_config()
    lora = load("minimind-lora").run_config({"training.lora.rank": 8}).training.lora
    run = base.model_copy(update={"training": base.training.model_copy(update={"lora": lora})})
    counts = parameter_counts(run, 6400)
    assert counts.total - counts.trainable == 25_829_888
    # Rank x (rows + columns) of queries, keys, values, output, gate, up and down, in eight layers.
    pairs = [(512, 512), (128, 512), (128, 512), (512, 512), (1408, 512), (1408, 512), (512, 1408)]
    assert counts.trainable == 8 * 8 * sum(rows + columns for rows, columns in pairs)


def test_variants_of_b_are_equal_in_what_they_are_to_be_equal_in() -> None:
    sweep = load("minimind")
    baseline = num_parameters(sweep)
    for kind in sweep.search["model.feed_forward"].extremes():
        run = sweep.run_config({"model.feed_forward": kind, "model.equal_in": "parameters"})
        with torch.device("meta"):
            ours = build_model(run.model, sweep.tokenizer.vocabulary).num_parameters()
        assert ours == pytest.approx(baseline, rel=0.02), kind
