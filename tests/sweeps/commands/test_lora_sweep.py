"""A sweep of adapters as a user runs it: rank and targets swept, the winner merged and as an adapter, and used."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from command import run
from core.model_files.adapter_folder import save_adapter
from core.model_files.huggingface import import_huggingface
from core.models.lora import adapted_matrices, add_lora
from core.settings.run_config import RunConfig
from core.settings.training_config import LoraConfig
from data_pipeline.schema.user_errors import InputFault
from small_models import TEXTS, exported
from sweeps.analysis.result_tables import trial_row
from sweeps.commands.cli import app
from sweeps.planning.warm_start import beginning_with_weights
from sweeps.records.trial_records import TrialRecord
from sweeps.search_space.distribution import short_name
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml
from sweeps.trained_models.trained_model import load_trained

FILE = """\
name: adapters
start: {weights_of: FOLDER}
corpus: {path: CORPUS, holdout: 20%}
objective: causal_lm
training: {batch_size: 8, micro_batch_size: 4, learning_rate: 1e-2, precision: fp32, lora: {alpha: 8}}
search:
  training.lora.rank: {choice: [2, 4]}
  training.lora.targets: {choice: [all-linear, "q_proj,v_proj"]}
searcher: {method: grid}
early_stopping: {method: none}
budget: {trials: 4, tokens_per_trial: 6k}
resources: {concurrent_trials: 1}
"""


def asked(folder: Path, *overrides: str) -> SweepConfig:
    return resolve_sweep(read_yaml(FILE.replace("FOLDER", str(folder))), overrides, source="adapters.yaml")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("base"), "decoder")


def test_adapters_need_not_be_in_the_file_to_be_swept(base: Path) -> None:
    sweep = asked(base, "training={learning_rate: 1e-3}")
    run_config: RunConfig = sweep.run_config({"training.lora.rank": 4})
    assert run_config.training.lora is not None
    assert (run_config.training.lora.rank, run_config.training.learning_rate) == (4, 1e-3)


def test_adapters_without_a_base_are_a_fault_of_the_file_with_the_remedy(base: Path) -> None:
    text = FILE.replace("start: {weights_of: FOLDER}\n", "model: {family: decoder}\n")
    with pytest.raises(SettingsFileError, match=r"give one as training.initial_weights \(its folder\) or start."):
        resolve_sweep(read_yaml(text), source="adapters.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("search.training.lora.rank.choice=[2, 64]", r"training.lora.rank=64 is above the size of q_proj, 32 x 32"),
        (
            "search.training.lora.targets.choice=[query, q_proj]",
            r"targets=query names 'query', which this model lacks; use q_proj",
        ),
    ],
)
def test_swept_values_that_no_matrix_of_the_base_allows_are_refused_before_any_trial(
    change: str, said: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputFault, match=said):
        beginning_with_weights(asked(base, change), tmp_path)


def test_rank_of_adapters_is_told_apart_from_the_rank_of_a_trial() -> None:
    row = trial_row(TrialRecord(number=1, settings={"training.lora.rank": 4}), rank=1)
    assert short_name("training.lora.rank") not in row
    assert short_name("training.learning_rate") == "learning_rate"


def test_an_adapter_is_no_base_for_another(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputFault, match="holds an adapter, not a whole model; write the whole model with pretune export"
    ):
        beginning_with_weights(asked(tmp_path), tmp_path)


@pytest.fixture(scope="module")
def swept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("results")
    (folder / "corpus.txt").write_text("\n".join(f"{text} number {number}" for number in range(60) for text in TEXTS))
    file = folder / "adapters.yaml"
    file.write_text(FILE.replace("FOLDER", str(base)).replace("CORPUS", str(folder / "corpus.txt")))
    plan = command("plan", file, "--no-measure", "--results", folder)
    code, output = run("sweep", file, "--results", folder)
    assert code == 0, output
    (found,) = folder.glob("adapters-*/summary.json")
    return found.parent, plan


@pytest.mark.ray
def test_plan_names_the_swept_settings_of_adapters(swept: tuple[Path, str]) -> None:
    for path in ("training.lora.rank", "training.lora.targets"):
        assert path in swept[1]


@pytest.mark.ray
def test_each_trial_says_how_many_of_its_parameters_it_trains_and_needs_what_was_predicted(
    swept: tuple[Path, str], base: Path
) -> None:
    folder, _ = swept
    of_base = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert len(rows) == 4
    for row in rows:
        rank = int(row["training.lora.rank"])
        of_attention = 2 * rank * (32 + 32) if row["training.lora.targets"] != "all-linear" else 4 * rank * (32 + 32)
        of_feed_forward = 3 * rank * (32 + 128) if row["training.lora.targets"] == "all-linear" else 0
        trainable = 2 * (of_attention + of_feed_forward)
        assert int(row["trainable_parameters"]) == trainable
        assert int(row["parameters"]) == of_base + trainable
        assert row["outcome"] == "COMPLETED"
        # Equal to the byte in full rows; those of a corpus end earlier here and there.
        assert int(row["measured_peak_memory_bytes"]) == pytest.approx(
            int(row["predicted_peak_memory_bytes"]), rel=0.02
        )


@pytest.mark.ray
def test_winner_is_a_model_for_transformers_and_an_adapter_for_peft_with_the_same_logits(
    swept: tuple[Path, str], base: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="no peft (pip install peft)")
    folder, _ = swept
    inputs_BT = torch.arange(5, 25)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(folder / "best")(input_ids=inputs_BT).logits
        their_base = AutoModelForCausalLM.from_pretrained(base)
        untouched = their_base(input_ids=inputs_BT).logits
        adapted = peft.PeftModel.from_pretrained(their_base, folder / "best-adapter").eval()(input_ids=inputs_BT).logits
        ours = load_trained(folder / "best-adapter").model(inputs_BT)
    scale = merged.abs().max().item()
    assert (adapted - merged).abs().max().item() < 1e-5 * scale
    assert (ours - merged).abs().max().item() < 1e-5 * scale
    assert (untouched - merged).abs().max().item() > 1e-2 * scale


def an_adapter(family: str, folder: Path) -> Path:
    """Of an exported model, as if something had been learnt."""
    base, lora = exported(folder, family), LoraConfig(rank=2)
    loaded = import_huggingface(base)
    add_lora(loaded.model, loaded.config, lora)
    with torch.no_grad():
        for matrix in adapted_matrices(loaded.model).values():
            matrix.lora_B.normal_()
    save_adapter(loaded.model, loaded.config, lora, base, folder / "adapter")
    return folder / "adapter"


def command(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize(("family", "uses"), [("encoder", "fill-mask"), ("decoder", "generate")])
def test_commands_take_an_adapter_like_the_model_that_it_makes(family: str, uses: str, tmp_path: Path) -> None:
    adapter, corpus = an_adapter(family, tmp_path), tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS))
    whole = tmp_path / "whole"
    command("export", adapter, whole)
    said = [command(uses, place, "the <mask> cat" if family == "encoder" else "the red") for place in (whole, adapter)]
    assert said[0] == said[1]
    losses = [
        json.loads(command("evaluate", place, "--corpus", corpus, "--json"))["holdout/loss_nats_per_token"]
        for place in (whole, adapter, tmp_path / "best")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] != pytest.approx(losses[0], rel=1e-4), "the adapter changes nothing"


def test_an_adapter_whose_base_is_gone_is_refused_with_the_remedy(tmp_path: Path) -> None:
    adapter = an_adapter("decoder", tmp_path)
    (tmp_path / "best").rename(tmp_path / "elsewhere")
    output = " ".join(command("generate", adapter, "the red", code=2).split())
    assert "belongs to the model" in output
    assert "put it back, or set base_model_name_or_path" in output
