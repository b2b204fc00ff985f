import pytest

from sweep_examples import TINY, tiny_sweep
from sweeps.finetuning.finetune_config import FinetuneConfig
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.settings_file import resolve_settings
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

BATCH = "search.training.batch_size"


def faults_of(*overrides: str) -> str:
    with pytest.raises(SettingsFileError) as raised:
        tiny_sweep(*overrides)
    return str(raised.value)


def test_a_quoted_number_is_refused_with_its_own_line() -> None:
    listed = '{choice: [\n    16,\n    "32",\n    1e2]}'
    with pytest.raises(SettingsFileError) as raised:
        resolve_sweep(read_yaml(TINY.replace("{choice: [16, 32]}", listed)), source="tiny.yaml")
    expected = """line 10: search.training.batch_size = '32': "32" is text; write 32, without quotes."""
    assert expected in str(raised.value)


def test_numbers_without_a_fraction_are_whole_where_the_setting_is_whole() -> None:
    sweep = tiny_sweep(f"{BATCH}.choice=[1e2, 32.0, 1k]", "start_with=[{training.batch_size: 32.0}]")
    assert repr(sweep.search["training.batch_size"].extremes()) == "(100, 32, 1000)"
    assert repr(sweep.start_with) == "({'training.batch_size': 32},)"
    assert resolve_sweep(read_yaml(dump_sweep(sweep)), source="resolved") == sweep


def test_numbers_and_words_of_other_settings_stay_as_the_file_has_them() -> None:
    sweep = tiny_sweep(
        "search.training.learning_rate={choice: [1, 0.001]}", "search.training.micro_batch_size={choice: [auto, 8]}"
    )
    assert repr(sweep.search["training.learning_rate"].extremes()) == "(1, 0.001)"
    assert sweep.search["training.micro_batch_size"].extremes() == ("auto", 8)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (f"{BATCH}.choice=[32, 32.0]", "a value is listed twice"),
        (f"{BATCH}.choice=[16, many]", "search.training.batch_size = 'many': not a quantity"),
        (f"{BATCH}.choice=[16, true]", "search.training.batch_size = True: true is no number"),
        (f"{BATCH}.choice=[16, 16.5]", "search.training.batch_size = 16.5: is not a whole number"),
        (f"{BATCH}={{uniform: [8, 64]}}", "uniform gives fractions, and this setting is a whole number; use int_unif"),
        (f"{BATCH}={{log_uniform: [8, 64]}}", "use log_int_uniform"),
        ("search.training.compile={uniform: [0, 1]}", "uniform gives numbers, and this setting is none; list its val"),
        ("search.training.micro_batch_size={choice: [auto, '8']}", '"8" is text; write 8'),
        ('start_with=[{training.batch_size: "16"}]', """start_with.0.training.batch_size = '16': "16" is text"""),
    ],
)
def test_a_value_of_another_type_is_refused_before_anything_compares_it(override: str, expected: str) -> None:
    assert expected in faults_of(override)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ('training.batch_size: {choice: ["16", 32.0]}', '"16" is text; write 16'),
        ("training.seed: {uniform: [0, 3]}", "uniform gives fractions"),
        ("training.learning_rate: {choice: [auto, 1e-3]}", "auto stands beside numbers; list numbers only"),
    ],
)
def test_a_fine_tuning_refuses_values_of_another_type_too(search: str, expected: str) -> None:
    from sweeps.finetuning.finetune_file import FINETUNING

    file = f"name: f\nstart: {{weights_of: model}}\ncorpus: {{path: rows.csv, label: label}}\nsearch: {{{search}}}\n"
    with pytest.raises(SettingsFileError) as raised:
        resolve_settings(read_yaml(file), FINETUNING, source="f.yaml")
    assert expected in str(raised.value)


def test_a_fine_tuning_takes_numbers_without_a_fraction_as_whole() -> None:
    raw = {"name": "f", "start": {"weights_of": "m"}, "corpus": {"path": "rows.csv", "label": "label"}}
    config = FinetuneConfig.model_validate(raw | {"search": {"training.batch_size": {"choice": [32.0, 64]}}})
    assert repr(config.settings().batch_sizes) == "(32, 64)"
