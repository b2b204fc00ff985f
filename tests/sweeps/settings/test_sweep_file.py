from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.search_space.distribution import Distribution
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file, resolve_sweep, sweepable_paths
from sweeps.settings.yaml_lines import read_yaml

CONFIGS = sorted(
    path for path in (Path(__file__).parents[3] / "sweeps/configs").glob("*.yaml") if path.stem != "traffic-classify"
)
"""All but the one of another kind (tests/sweeps/finetuning/test_finetune_file.py)."""
assert len(CONFIGS) > 5, "there are no sweep files to read"

WHOLE = """\
name: traffic-mlm
corpus: {path: data/packets.csv, text: text, holdout: 2%}
tokenizer: {kind: words, vocabulary: 65541}
model: {family: encoder, layers: 6, width: 384, heads: 6, sequence_length: 256}
objective: {masked_lm: {masking_rate: 0.15}}
training: {batch_size: 64, micro_batch_size: auto, learning_rate: 5e-4, precision: auto}
search:
  training.learning_rate: {log_uniform: [1e-4, 3e-3]}
  training.batch_size: {choice: [64, 128, 256]}
  objective.masked_lm.masking_rate: {uniform: [0.10, 0.50]}
budget: {trials: 24, tokens_per_trial: 20M}
resources: {workers_per_trial: 1, concurrent_trials: auto, memory: auto}
"""


def resolve(text: str, *overrides: str) -> SweepConfig:
    return resolve_sweep(read_yaml(text), overrides, source="sweep.yaml")


def faults_of(text: str, *overrides: str) -> str:
    with pytest.raises(SettingsFileError) as caught:
        resolve(text, *overrides)
    return str(caught.value)


def test_quantities_are_read_as_people_write_them() -> None:
    sweep = resolve(WHOLE)
    assert sweep.budget.tokens_per_trial == 20_000_000
    assert sweep.corpus.holdout == 0.02
    assert sweep.training.learning_rate == 5e-4
    assert resolve(WHOLE, "resources.memory=1.5GiB").resources.memory == 3 * 2**29


def test_five_different_mistakes_are_all_listed_with_line_value_rule_and_remedy() -> None:
    text = (
        WHOLE.replace("family: encoder", "family: encodr")
        .replace("learning_rate: 5e-4", "learning_rte: 5e-4")
        .replace("choice: [64, 128, 256]", "choice: [64, 0]")
        .replace("holdout: 2%", "holdout: 200%")
        .replace("tokens_per_trial: 20M", "tokens_per_trial: 20Q")
    )
    message = faults_of(text)
    assert "has 5 faults" in message
    assert "line 4: model.family = 'encodr': is not one of 'encoder' or 'decoder'; did you mean encoder?" in message
    assert "line 6: training.learning_rte: is not a setting; did you mean learning_rate?" in message
    assert "line 9: search.training.batch_size = 0: should be greater than or equal to 1" in message
    assert "line 2: corpus.holdout = '200%': should be less than or equal to 1" in message
    assert "line 11: budget.tokens_per_trial = '20Q': not a quantity" in message


def test_a_misspelt_swept_setting_suggests_the_nearest_one() -> None:
    message = faults_of(WHOLE.replace("training.learning_rate:", "training.learning_rat:"))
    assert "search.training.learning_rat: is not a setting that can be swept; did you mean training.learning_rate?" in (
        message
    )


def test_a_setting_that_decides_the_data_cannot_be_swept() -> None:
    swept = "  model.sequence_length: {choice: [64, 128]}\nbudget:"
    assert "cannot be swept; rows are packed once" in faults_of(WHOLE.replace("budget:", swept))


def test_a_range_upside_down_is_refused() -> None:
    assert "the lower end 0.5 is not below the upper end 0.1" in faults_of(WHOLE.replace("[0.10, 0.50]", "[0.5, 0.1]"))


def test_a_key_given_twice_is_a_fault_with_its_line() -> None:
    assert "line 13: name: is given twice" in faults_of(WHOLE + "name: other\n")


def test_what_is_missing_is_named_with_what_it_is_for() -> None:
    message = faults_of(WHOLE.replace("budget: {trials: 24, tokens_per_trial: 20M}\n", "budget: {trials: 24}\n"))
    assert "budget.tokens_per_trial: is missing; give it: Tokens of training that a trial gets" in message


def test_a_masked_model_without_a_mask_token_is_refused() -> None:
    text = WHOLE.replace("kind: words,", "kind: words, special_tokens: minimind,")
    assert "masked_lm needs a <mask> token" in faults_of(text)


def test_a_sweep_without_a_holdout_is_refused() -> None:
    assert "corpus.holdout=0 leaves no rows to compare trials on" in faults_of(WHOLE.replace("2%", "0%"))


def test_a_batch_smaller_than_the_workers_is_refused() -> None:
    assert "leaves some of the 100 workers without a row" in faults_of(WHOLE, "resources.workers_per_trial=100")


def test_an_override_replaces_any_dotted_key_and_a_swept_range() -> None:
    sweep = resolve(WHOLE, "corpus.path=other.csv", "search.training.batch_size.choice=[4, 8]", "model.layers=2")
    assert sweep.corpus.path == "other.csv"
    assert sweep.search["training.batch_size"].extremes() == (4, 8)
    assert sweep.model.layers == 2


def test_a_path_on_the_command_line_replaces_the_builtin_corpus() -> None:
    text = WHOLE.replace("path: data/packets.csv, text: text,", "builtin: python-docs,")
    sweep = resolve(text, "corpus.path=mine.txt")
    assert (sweep.corpus.path, sweep.corpus.builtin) == ("mine.txt", None)


def test_an_override_without_a_value_is_a_fault_and_not_a_crash() -> None:
    assert "is not key=value" in faults_of(WHOLE, "corpus.path")


def test_text_that_is_not_yaml_says_on_which_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("name: x\ncorpus: [unclosed\n")
    with pytest.raises(SettingsFileError, match=r"line 3: file: is not YAML"):
        load_sweep_file(file)


def test_a_file_that_is_not_there_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "traffic.yaml").write_text(WHOLE)
    with pytest.raises(SettingsFileError, match=r"did you mean .*traffic\.yaml"):
        load_sweep_file(tmp_path / "trafic.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_its_resolved_form_means_the_same(path: Path) -> None:
    sweep = load_sweep_file(path)
    assert resolve(dump_sweep(sweep)) == sweep


def test_every_sweepable_path_names_a_setting_of_a_run() -> None:
    run = resolve(WHOLE).run_config()
    for path in sweepable_paths():
        value: object = run
        for part in path.split("."):
            assert value is None or part in type(value).model_fields, path  # type: ignore[attr-defined]
            value = getattr(value, part, None)


@given(low=st.floats(1e-6, 1.0), factor=st.floats(1.01, 1e4), points=st.integers(1, 9))
def test_a_grid_stays_inside_its_range_and_touches_both_ends(low: float, factor: float, points: int) -> None:
    grid = Distribution(log_uniform=(low, low * factor)).grid(points)
    assert len(grid) == points
    assert all(low * (1 - 1e-9) <= value <= low * factor * (1 + 1e-9) for value in grid)
    assert points == 1 or (grid[0] == pytest.approx(low) and grid[-1] == pytest.approx(low * factor))
