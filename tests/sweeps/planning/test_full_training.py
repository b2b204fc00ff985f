"""What `pretune train` makes of a file or a results folder, before anything is trained."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from core.settings.training_config import TrainingConfig
from data_pipeline.schema.user_errors import InputFault
from small_models import exported
from sweep_examples import record, tiny_sweep
from sweeps.analysis.result_tables import write_summary
from sweeps.planning.full_training import AskedLength, plan_training
from sweeps.planning.learning_rate_rule import scaled_learning_rate
from sweeps.planning.warm_start import beginning_with_weights, notes_of, refuse_settings_of
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SweepFolder
from sweeps.records.trial_records import TrialStore
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file

TRAIN = """\
name: tiny-train
start: {settings_of: tiny}
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}
objective: {masked_lm: {masking_rate: 0.15}}
budget: {trials: 1, tokens_per_trial: 120k}
"""
SETTINGS = {"training.learning_rate": 4e-3, "training.batch_size": 16, "training.micro_batch_size": 8}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of a finished sweep of four trials; the second is the best."""
    folder = SweepFolder(tmp_path / "results", tiny_sweep(), identity="0123456789abcdef")
    folder.create()
    store = TrialStore(folder.trials)
    store.save(record(1, loss=6.0, settings=SETTINGS | {"training.learning_rate": 1e-3}))
    store.save(record(2, loss=5.0, settings=SETTINGS, micro_batch_size_used=4))
    store.save(record(3, Outcome.INFEASIBLE, settings=SETTINGS | {"training.batch_size": 32}))
    store.save(record(4, Outcome.STOPPED, loss=7.0, settings=SETTINGS | {"training.batch_size": 32}))
    write_summary(
        folder.path / "summary.json",
        {
            "name": "tiny",
            "status": "finished",
            "best": {"trial": "trial-0002"},
            "data": {"folder": str(tmp_path / "x")},
        },
    )
    return tmp_path / "results"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-train.yaml"
    path.write_text(TRAIN)
    return path


def plan(path: Path, results: Path, *overrides: str, **options: Any) -> SweepConfig:
    chosen, tokens, keep = (options.get(name) for name in ("chosen", "tokens", "keep_settings"))
    return plan_training(
        path,
        overrides,
        chosen=chosen,
        length=AskedLength(tokens=tokens),
        keep_settings=bool(keep),
        results_folder=results,
        console=Console(file=io.StringIO()),
    )


def test_a_training_has_the_winners_settings_and_is_one_trial_that_nothing_ends_early(
    file: Path, results: Path
) -> None:
    sweep = plan(file, results)
    assert (sweep.training.learning_rate, sweep.training.batch_size) == (4e-3, 16)
    assert sweep.training.micro_batch_size == 4, "the one that memory left it"
    assert (sweep.name, sweep.budget.trials, sweep.budget.tokens_per_trial) == ("tiny-train", 1, 120_000)
    assert (dict(sweep.search), sweep.early_stopping.method) == ({}, "none")


def test_the_notes_say_where_the_settings_come_from_and_why_the_rate_is_kept(file: Path, results: Path) -> None:
    notes = " ".join(notes_of(plan(file, results)))
    assert "settings of trial-0002 in" in notes
    assert "kept at any length, since it is constant up to the cooldown (arXiv:2405.18392)" in notes


def test_another_trial_may_be_chosen(file: Path, results: Path) -> None:
    assert plan(file, results, chosen="trial-0004").training.batch_size == 32


def test_from_file_leaves_the_sweep_alone(file: Path, tmp_path: Path) -> None:
    sweep = plan(file, tmp_path / "nothing-here", chosen="file")
    assert sweep.training.learning_rate == TrainingConfig().learning_rate


def test_what_the_command_line_sets_goes_before_the_winners_settings_and_the_rate_follows(
    file: Path, results: Path
) -> None:
    sweep = plan(file, results, "training.batch_size=64")
    assert sweep.training.batch_size == 64
    assert sweep.training.learning_rate == pytest.approx(2 * 4e-3)
    assert any("the square root of batch 64 over 16 (arXiv:2205.10287)" in note for note in notes_of(sweep))
    assert plan(file, results, "training.batch_size=64", keep_settings=True).training.learning_rate == 4e-3
    given = plan(file, results, "training.batch_size=64", "training.learning_rate=1e-2")
    assert given.training.learning_rate == 1e-2


def test_a_results_folder_is_trained_for_as_long_as_asked(results: Path) -> None:
    (folder,) = results.glob("tiny-*")
    sweep = plan(folder, results, tokens=240_000)
    assert (sweep.name, sweep.budget.tokens_per_trial, sweep.training.learning_rate) == ("tiny-train", 240_000, 4e-3)


def test_a_size_without_a_sweep_of_its_own_takes_the_winner_of_another_size_and_warns_of_its_rate(
    results: Path, tmp_path: Path
) -> None:
    text = TRAIN.replace("name: tiny-train\nstart: {settings_of: tiny}", "name: tiny") + (
        "search: {training.learning_rate: {log_uniform: [1e-4, 1e-2]}}\n"
        "sizes: {full: {model: {width: 128, heads: 8, layers: 3}}}\n"
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    full = plan(path, results, "size=full", chosen="best")
    assert (full.training.learning_rate, full.model.width) == (4e-3, 128)
    warning = "the learning rate goes from width 32 and 1 layers to width 128 and 3 layers without a rule"
    assert any(warning in note for note in notes_of(full))
    assert any(
        "the learning rate goes from" in note for note in notes_of(plan(path, results, "model.layers=2", chosen="best"))
    )
    assert not any("learning rate goes" in note for note in notes_of(plan(path, results, chosen="best")))
    given = plan(path, results, "size=full", "training.learning_rate=1e-3", chosen="best")
    assert not any("learning rate goes" in note for note in notes_of(given)), "the user knows better"

    mup = ("size=full", "model.parametrization=mup", "model.mup_base_width=32")
    notes = notes_of(plan(path, results, *mup, chosen="best"))
    assert any(
        "transfers from width 32 and 1 layers to width 128 and 3 layers by model.parametrization: mup" in n
        for n in notes
    )
    assert any("sweep with model.mup_base_layers: 1" in note for note in notes)
    assert not any("heads are" in note for note in notes), "16 wide on both sides"
    scaled = ("model.mup_base_layers=1", "model.heads=4")
    whole = notes_of(plan(path, results, *mup, "model.form=modern", *scaled, chosen="best"))
    assert not any("mup_base_layers" in note for note in whole)
    assert any("heads are 16 wide there and 32 here" in note and "use model.heads: 8" in note for note in whole)


def test_settings_in_units_of_their_own_stay_in_them_and_the_notes_say_so(results: Path, tmp_path: Path) -> None:
    units = "weight_decay_timescale: 0.5, beta2_half_life_tokens: 10k, warmup_tokens: 2k"
    folder = next(results.glob("tiny-*"))
    sweep_file = folder / "sweep.yaml"
    sweep_file.write_text(dump_sweep(tiny_sweep(f"training={{{units}}}")))
    longer = plan(folder, results, "training.batch_size=64", tokens=3_000_000)
    training = longer.training
    assert (training.weight_decay_timescale, training.beta2_half_life_tokens) == (0.5, 10_000)
    assert training.warmup_tokens == 2000
    notes = notes_of(longer)
    # 30k tokens in batches of 16 x 32 are 58.6 steps, 3M in batches of 64 x 32 are 1464.8; rates 4e-3 and 8e-3.
    there, here = 1 / (4e-3 * 0.5 * 58.59), 1 / (8e-3 * 0.5 * 1464.8)
    assert f"weight decay keeps its time scale, 0.5 of the training: {there:.3g} there and {here:.3g} here" in notes
    assert "beta2 keeps its half-life of 10,000 tokens: 0.9651 there and 0.8677 here" in notes
    assert "the warm-up stays 2,000 tokens long" in notes


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no length": ("FOLDER", {}, "--tokens is missing: the trials of tiny-01234567 had 30,000 tokens"),
    "no such trial": ("FILE", {"chosen": "trial-0009"}, "has no such trial; it has trial-0001, trial-0002, trial-0004"),
    "an infeasible trial": ("FILE", {"chosen": "trial-0003"}, "has no weights of it (INFEASIBLE); it has"),
    "no folder of a sweep": ("EMPTY", {}, "is no results folder of a sweep: it has no sweep.yaml"),
}


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_a_mistake_is_told_with_its_remedy_before_anything_starts(
    case: str, file: Path, results: Path, tmp_path: Path
) -> None:
    what, options, words = FAULTS[case]
    (tmp_path / "empty").mkdir()
    path = {"FOLDER": next(results.glob("tiny-*")), "FILE": file, "EMPTY": tmp_path / "empty"}[what]
    with pytest.raises(InputFault) as caught:
        plan(path, results, **options)
    assert words in str(caught.value)


def test_a_sweep_of_another_size_is_not_taken_for_this_one(file: Path, results: Path) -> None:
    file.write_text(TRAIN + "sizes: {full: {model: {layers: 2}}}\n")
    with pytest.raises(InputFault, match=r"holds no finished sweep or training called tiny of size full.*--from file"):
        plan(file, results, "size=full")


def test_a_sweep_file_must_say_whose_values(tmp_path: Path, results: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(next(results.glob("tiny-*/sweep.yaml")).read_text())
    with pytest.raises(InputFault, match=r"sweeps training\.learning_rate.*--from best"):
        plan(file, results)
    assert plan(file, results, chosen="best", tokens=60_000).training.learning_rate == 4e-3


def test_tokens_and_stages_contradict(file: Path, results: Path) -> None:
    staged = TRAIN[: TRAIN.index("budget")].replace(", sequence_length: 32", "") + "stages: [{tokens: 1000}]\n"
    file.write_text(staged)
    with pytest.raises(InputFault, match="--tokens 1000: the stages of the file set the length"):
        plan(file, results, tokens=1000)


def test_a_sweep_that_asks_for_settings_is_sent_to_train(file: Path, results: Path) -> None:
    with pytest.raises(InputFault, match="use pretune train"):
        refuse_settings_of(load_sweep_file(file))


def test_weights_of_a_sweep_are_its_bests_with_the_shape_and_tokenizer_that_it_has(file: Path, results: Path) -> None:
    lines = TRAIN.replace("settings_of", "weights_of").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("model:")))
    sweep = load_sweep_file(file)
    with pytest.raises(InputFault, match=r"trial-0002 has no checkpoint"):
        beginning_with_weights(sweep, results)
    (folder,) = results.glob("tiny-*")
    exported(folder, "encoder")
    changed = beginning_with_weights(sweep, results)
    assert changed.training.initial_weights == str(folder / "best")
    assert changed.model.layers == 2
    assert changed.tokenizer.path == str(folder / "best" / "tokenizer.json"), (
        "the same one by its settings, so no fault"
    )
    trained = plan(file, results)
    assert (trained.model, trained.training.initial_weights) == (changed.model, str(folder / "best"))
    assert notes_of(trained) == notes_of(changed) == [f"weights, shape and tokenizer of {folder / 'best'}"]


RATES = st.floats(1e-6, 1.0)
SIZES = st.integers(1, 1 << 20)
LENGTHS = st.integers(1, 10**12)


@given(RATES, SIZES, SIZES, SIZES, LENGTHS, st.sampled_from(["wsd", "constant", "cosine", "linear"]))
def test_scaling_to_a_batch_by_way_of_another_is_scaling_to_it(
    rate: float, first: int, second: int, third: int, tokens: int, schedule: Any
) -> None:
    def scaled(rate: float, there: int, here: int) -> float:
        found = TrainingConfig(learning_rate=rate, batch_size=there, schedule=schedule)
        wanted = TrainingConfig(batch_size=here, schedule=schedule)
        return scaled_learning_rate(found, wanted, tokens_there=tokens, tokens_here=tokens).value

    assert scaled(scaled(rate, first, second), second, third) == pytest.approx(scaled(rate, first, third))


@given(RATES, LENGTHS, LENGTHS, st.sampled_from(["wsd", "constant", "cosine", "linear"]))
def test_a_rate_is_never_raised_for_a_length_and_lowered_only_where_it_falls_all_the_way(
    rate: float, there: int, here: int, schedule: Any
) -> None:
    same = TrainingConfig(learning_rate=rate, schedule=schedule)
    scaled = scaled_learning_rate(same, same, tokens_there=there, tokens_here=here).value
    assert 0 < scaled <= rate
    assert (scaled < rate) == (schedule in ("cosine", "linear") and here > there)


def test_ten_times_the_tokens_of_a_cosine_halve_the_rate() -> None:
    # The rule of thumb of arXiv:2409.19913 in one figure: 10 ** -0.32 is 0.48.
    cosine = TrainingConfig(learning_rate=1e-3, schedule="cosine")
    scaled = scaled_learning_rate(cosine, cosine, tokens_there=10**9, tokens_here=10**10)
    assert math.isclose(scaled.value, 0.5e-3, rel_tol=0.05)
    assert "(arXiv:2409.19913)" in scaled.reason
