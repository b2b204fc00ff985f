"""Settings files made to break or to exhaust the reader, and files of random settings."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_values import NUMBERS, changed, nested
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.finetuning.finetune_file import FINETUNING
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.settings_file import load_settings
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file, sweepable_paths
from sweeps.settings.yaml_lines import read_yaml

CONFIGS = Path(__file__).parents[3] / "sweeps/configs"
HEAD = "name: a\ncorpus: {path: x}\n"
QUICKSTART = (CONFIGS / "quickstart.yaml").read_text(encoding="utf-8")

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BOMB, "line 5: file: the text expands to more than 50,000 values; use fewer aliases"),
        (HEAD + "a: " + "[" * 3000 + "]" * 3000, "line 3: file: settings are nested more than 30 levels deep"),
        (HEAD + "a: &a [1]\nb: " + "[" * 28 + "*a" + "]" * 28, "line 4: file: settings are nested more than 30"),
        (HEAD + "a: &a [*a]", "line 3: file: the alias *a contains itself; write its values out"),
        (HEAD + "a: &a {b: [*a]}", "line 3: file: the alias *a contains itself; write its values out"),
        (HEAD + "a: *b", "line 3: file: is not YAML: found undefined alias 'b'"),
        (HEAD + f"seed: {'1' * 5000}", "line 3: file: a value cannot be read as int; check it"),
        (HEAD + f"seed: {'1' * 50}", "line 3: file: a number is beyond 9,223,372,036,854,775,807; write a smaller one"),
        (HEAD + "training: {learning_rate: 2024-13-45}", "training.learning_rate = '2024-13-45': is not a number"),
        (HEAD + "seed: !!timestamp 2024-13-45", "line 3: file: a value cannot be read as timestamp; check it"),
        (HEAD + "seed: 1e400", "line 3: file: 1e400 is not a finite number; write one of at most 1e308"),
        (HEAD + "seed: .nan", "line 3: file: .nan is not a finite number"),
        (HEAD + "seed: !!int x", "line 3: file: a value cannot be read as int; check it"),
        (HEAD + "seed: !!bool x", "line 3: file: a value cannot be read as bool; check it"),
        (HEAD + "seed: !!set {b}", "line 3: file: no setting is of the kind set; remove the tag"),
        (HEAD + "seed: !!python/object/apply:os.system [id]", "line 3: file: is not YAML: could not determine"),
        (HEAD + "1: b", "line 3: file: a name is not text; put it in quotes"),
        (HEAD + "? [a]\n: b", "line 3: file: a name is not text; put it in quotes"),
        (HEAD + "k" * 201 + ": b", "line 3: file: a name is longer than 200 characters; shorten it"),
        ("#" * (1 << 20) + "\n" + HEAD, "file: is longer than 1,048,576 characters; give a settings file"),
        (HEAD + f"budget: {{tokens_per_trial: {'9' * 400}M}}", "not a finite number; write a smaller one"),
        (HEAD + f"budget: {{wall_clock: {'9' * 400}s}}", "is not a duration; write a positive number"),
        (HEAD + "---\n" + HEAD, "line 3: file: is not YAML: but found another document"),
        ("\0", "file: is not YAML"),
    ],
)
def test_file_made_to_break_the_reader_is_a_fault_with_its_line_and_remedy(
    tmp_path: Path, text: str, fault: str
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsFileError) as caught:
        load_sweep_file(file)
    assert fault in str(caught.value)
    # No value, however long, fills a terminal.
    assert max(map(len, str(caught.value).splitlines())) < 1000


@pytest.mark.parametrize("value", ["1e400", "*a", "[" * 3000 + "]" * 3000, "1" * 5000, "{1: 2}", "!!int x", "[", BOMB])
def test_value_on_the_command_line_made_to_break_the_reader_is_a_fault(value: str) -> None:
    with pytest.raises(SettingsFileError, match="one fault"):
        load_sweep_file(CONFIGS / "quickstart.yaml", [f"training.seed={value}"])


def test_anchors_and_merges_stay_legal() -> None:
    text = QUICKSTART + "purpose: &why because\nstart_with: [&one {training.learning_rate: 1e-3}, {<<: *one}]\n"
    document = read_yaml(text)
    assert document.values["start_with"] == [{"training.learning_rate": 1e-3}] * 2
    assert document.line_of("start_with") == len(text.splitlines())


def test_date_is_text() -> None:
    assert read_yaml("name: 2024-01-01").values == {"name": "2024-01-01"}


def load_and_expect_only_our_errors(text: str, file: Path, overrides: list[str]) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for load in (load_sweep_file, lambda path, given: load_settings(path, FINETUNING, given)):
        with suppress(SettingsFileError):
            load(file, overrides)


VALUES = nested(st.text(max_size=9) | NUMBERS)
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), VALUES), min_size=1, max_size=3)
PATHS = [*sweepable_paths(), "size", "search.training.seed.choice", "corpus.path.x", "a"]
OVERRIDES = st.lists(st.tuples(st.sampled_from(PATHS), VALUES), max_size=2)


def change_and_load(changes: list[tuple[int, Any]], overrides: list[tuple[str, Any]], file: Path) -> None:
    values = changed(yaml.safe_load(QUICKSTART), changes)
    given = [f"{path}={yaml.safe_dump(value, default_flow_style=True)}" for path, value in overrides]
    load_and_expect_only_our_errors(yaml.safe_dump(values, allow_unicode=True), file, given)


@settings(max_examples=25, derandomize=True)
@given(changes=CHANGES, overrides=OVERRIDES)
def test_sweep_file_with_random_settings_gives_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, Any]], overrides: list[tuple[str, Any]]
) -> None:
    change_and_load(changes, overrides, tmp_path_factory.getbasetemp() / "random.yaml")


@pytest.mark.slow
@settings(max_examples=5000)
@given(changes=CHANGES, overrides=OVERRIDES)
def test_sweep_file_with_any_settings_gives_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, Any]], overrides: list[tuple[str, Any]]
) -> None:
    change_and_load(changes, overrides, tmp_path_factory.getbasetemp() / "random.yaml")


MARKS = [*"a[]{},|>#~%@\t\n\ufeff\u2028\"'", "- ", ": ", "  ", "&a ", "*a", "!!int ", "!x ", "---\n", "? ", "<<: "]
TOKENS = st.sampled_from([*MARKS, "1e5", "name: a\n", "corpus: {path: x}\n"])


@settings(max_examples=150, derandomize=True)
@given(st.lists(TOKENS, max_size=30).map("".join) | st.text(max_size=40))
def test_random_yaml_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    load_and_expect_only_our_errors(text, tmp_path_factory.getbasetemp() / "random.yaml", [])


@pytest.mark.slow
@settings(max_examples=20_000)
@given(st.lists(TOKENS, max_size=60).map("".join) | st.text())
def test_any_yaml_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    load_and_expect_only_our_errors(text, tmp_path_factory.getbasetemp() / "random.yaml", [])


def test_quickstart_is_the_example_that_the_changes_start_from() -> None:
    assert isinstance(load_sweep_file(CONFIGS / "quickstart.yaml"), SweepConfig)
