"""A sweep file names a class: its source is found and not run, its digest is a part of the sweep."""

from pathlib import Path

import pytest
import yaml

from core.user_code.permitted_code import CodeNotPermittedError
from sweeps.records.results_folder import sweep_identity
from sweeps.settings.class_of_file import permit_class, source_of
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file

CLASS = "from torch import nn\nclass Mine(nn.Module): pass\n"


def sweep_file(folder: Path, model: str = "{class: 'mine.py:Mine', sequence_length: 16}", more: str = "") -> Path:
    (folder / "mine.py").write_text(CLASS)
    file = folder / "sweep.yaml"
    file.write_text(
        f"name: own\ncorpus: {{path: text.txt}}\nmodel: {model}\nobjective: causal_lm\n"
        f"budget: {{trials: 2, tokens_per_trial: 1k}}\n{more}"
    )
    return file


def test_the_family_follows_from_the_objective(tmp_path: Path) -> None:
    sweep = load_sweep_file(sweep_file(tmp_path))
    assert sweep.model.family == "decoder"
    assert sweep.run_config().model.is_causal


def test_a_changed_class_is_another_sweep_and_leave_to_run_it_is_not(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    first = sweep_identity(load_sweep_file(file), "data")
    assert sweep_identity(load_sweep_file(file, ["trust_code=true"]), "data") == first
    (tmp_path / "mine.py").write_text(CLASS + "# changed\n")
    assert sweep_identity(load_sweep_file(file), "data") != first


def test_the_resolved_file_gives_the_same_sweep_and_no_leave_to_run_code(tmp_path: Path) -> None:
    sweep = load_sweep_file(sweep_file(tmp_path, more="trust_code: true\n"))
    (tmp_path / "resolved.yaml").write_text(dump_sweep(sweep))
    again = load_sweep_file(tmp_path / "resolved.yaml")
    assert not again.trust_code
    assert again.model == sweep.model
    assert again.model_copy(update={"trust_code": True}) == sweep


def test_files_without_a_class_are_dumped_as_before() -> None:
    values = {
        "name": "ours",
        "corpus": {"path": "x.txt"},
        "objective": "masked_lm",
        "budget": {"trials": 1, "tokens_per_trial": 10},
    }
    plain = yaml.safe_load(dump_sweep(SweepConfig.model_validate(values)))
    assert not {"class", "arguments", "class_digest", "allow_batch_statistics"} & plain["model"].keys()
    assert "trust_code" not in plain


def test_code_runs_only_with_leave(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    file = sweep_file(tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w')\n{CLASS}")
    sweep = load_sweep_file(file)
    with pytest.raises(CodeNotPermittedError, match="--allow-code"):
        permit_class(sweep.model, is_trusted=sweep.trust_code)
    assert not canary.exists()
    permit_class(sweep.model, is_trusted=True)
    assert canary.exists()


def test_a_resolved_file_finds_the_source_of_then_beside_it(tmp_path: Path) -> None:
    from sweeps.records.results_folder import SweepFolder

    sweep = load_sweep_file(sweep_file(tmp_path))
    folder = SweepFolder(tmp_path / "results", sweep, "0" * 64)
    folder.create()
    (tmp_path / "mine.py").write_text(CLASS + "# changed\n")
    again = load_sweep_file(folder.path / "sweep.yaml")
    code = source_of("mine.py:Mine", again.model.class_digest)
    assert code is not None
    assert dict(code.files) == {"mine.py": CLASS}


def test_arguments_are_swept_and_have_a_value_in_the_file(tmp_path: Path) -> None:
    more = (
        "search:\n  model.arguments.width: {choice: [8, 16, 32]}\n  model.arguments.rate: {log_uniform: [1e-4, 1e-2]}\n"
    )
    sweep = load_sweep_file(sweep_file(tmp_path, more=more))
    assert sweep.model.arguments["width"] == 16
    assert sweep.model.arguments["rate"] == pytest.approx(1e-3)
    assert sweep.run_config({"model.arguments.width": 32}).model.arguments["width"] == 32
    assert sweep.value_at("model.arguments.width") == 16


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("{class: 'mine.py:Mne'}", "", r"line 3: model.class = 'mine.py:Mne': .* has no class Mne; did you mean Mine"),
        ("{class: 'mine.py:Mine', width: 64, heads: 2}", "", "heads, width are of our own forms"),
        ("{width: 64, arguments: {depth: 2}}", "", "arguments needs model.class"),
        (
            "{class: 'mine.py:Mine'}",
            "training: {lora: {rank: 2}}\n",
            "training.lora: pretune does not know the matrices",
        ),
        ("{class: 'mine.py:Mine'}", "training: {activation_checkpointing: true}\n", "does not know the layers"),
        ("{family: decoder}", "trust_code: true\n", "trust_code=true: the file names no code"),
        ("{family: decoder}", "search: {model.arguments.width: {choice: [1, 2]}}\n", "is an argument of a class"),
        ("{class: 'mine.py:Mine'}", "search: {model.class: {choice: [a, b]}}\n", "each class has arguments of its own"),
        ("{class: 'mine.py:Mine'}", "search: {model.width: {choice: [8, 16]}}\n", "width is of our own forms"),
    ],
)
def test_a_fault_is_told_with_its_remedy(tmp_path: Path, model: str, more: str, words: str) -> None:
    with pytest.raises(SettingsFileError, match=words):
        load_sweep_file(sweep_file(tmp_path, model, more))
