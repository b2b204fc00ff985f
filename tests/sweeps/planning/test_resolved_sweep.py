"""A sweep file made whole: weights, epochs and stages counted in tokens, with the prepared corpus and without it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweep_examples import tiny_sweep
from sweeps.planning.resolved_sweep import ExpectedSweep, PreparedSweep
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.stage_config import tokens_of
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

STAGED = """\
name: staged
corpus: {path: texts.txt, holdout: 20%}
tokenizer: {kind: byte-bpe, vocabulary: 300}
model: {family: encoder, layers: 1, width: 32, heads: 2}
objective: {masked_lm: {masking_rate: 0.15}}
stages:
  - {sequence_length: 16, batch_size: 4, epochs: 2}
  - {sequence_length: 32, batch_size: 4, tokens: 1k}
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"The trial number {n} ends with a loss of {n * n}.\n" for n in range(200)))
    return path


def in_epochs(epochs: float, *overrides: str) -> SweepConfig:
    return tiny_sweep(f"budget={{trials: 6, epochs_per_trial: {epochs}}}", *overrides)


def staged(texts: Path, *overrides: str) -> SweepConfig:
    return resolve_sweep(read_yaml(STAGED), [f"corpus.path={texts}", *overrides], source="staged.yaml")


def prepared(sweep: SweepConfig, results: Path) -> PreparedCorpus:
    """The corpus of a sweep, made without Ray in the folder in which commands look for it."""
    return prepare(
        sweep.corpus,
        sweep.tokenizer,
        sweep.packing,
        prepared_folder=results / "prepared",
        run=for_each_parcel_here,
        wanted="texts",
    )


def resolved(sweep: SweepConfig, results: Path) -> PreparedSweep:
    return PreparedSweep(sweep, results, Console(file=io.StringIO()))


def test_a_trial_gets_the_tokens_of_its_epochs_once_the_rows_are_counted(texts: Path, tmp_path: Path) -> None:
    of_texts = (f"corpus={{path: {texts}, holdout: 20%}}", "tokenizer.vocabulary=300")
    data = prepared(in_epochs(2.5, *of_texts), tmp_path)
    sweep = resolved(in_epochs(2.5, *of_texts), tmp_path).counted
    assert sweep.budget.trial_tokens == round(2.5 * data.train.num_tokens)
    assert resolve_sweep(read_yaml(dump_sweep(sweep)), source="again") == sweep
    assert resolved(sweep, tmp_path).counted == sweep
    limited = in_epochs(2.5, *of_texts, f"budget.tokens={data.train.num_tokens}")
    with pytest.raises(InputFault, match=r"no trial fits; raise it, or lower budget\.epochs_per_trial"):
        _ = resolved(limited, tmp_path).counted


def test_a_training_in_stages_has_the_tokens_of_them_all_whether_in_epochs_or_in_tokens(
    texts: Path, tmp_path: Path
) -> None:
    asked = staged(texts)
    assert asked.budget.tokens_per_trial is None, "the file does not say it, and nothing is filled in"
    first, _ = asked.stage_runs()
    rows = prepared(asked.model_copy(update={"packing": asked.packing_of(first)}), tmp_path).train
    prepared(asked, tmp_path)
    whole = resolved(asked, tmp_path)
    in_first = tokens_of(first, num_rows=rows.num_rows, num_tokens=rows.num_tokens)
    assert in_first == pytest.approx(2 * rows.num_tokens, abs=4 * 16), "whole steps: less than a batch from two epochs"
    assert whole.counted.budget.trial_tokens == in_first + 1000
    assert [stage.data.train.sequence_length for stage in whole.stages] == [16, 32]
    assert whole.data.fingerprint == whole.stages[-1].data.fingerprint
    too_few = staged(texts, "budget.tokens=1500")
    with pytest.raises(InputFault, match=r"of all stages: no trial fits; raise it, or lower the lengths of stages"):
        _ = resolved(too_few, tmp_path).counted


def test_before_the_corpus_is_prepared_the_same_steps_expect_about_as_many_tokens(texts: Path, tmp_path: Path) -> None:
    asked = staged(texts)
    expected = ExpectedSweep(asked, tmp_path)
    assert not list(tmp_path.glob("prepared"))
    prepared(asked, tmp_path)
    prepared(asked.model_copy(update={"packing": asked.packing_of(asked.stage_runs()[0])}), tmp_path)
    counted = resolved(asked, tmp_path).counted
    # Bytes a token are a guess: a vocabulary of 300 entries has fewer of them.
    assert expected.counted.budget.trial_tokens == pytest.approx(counted.budget.trial_tokens, rel=0.6)
    rest = {"budget": counted.budget}
    assert expected.counted.model_copy(update=rest) == counted, "they differ in nothing but the count"


def test_a_plan_expects_about_as_many_tokens_for_each_epoch(tmp_path: Path) -> None:
    one, three = (ExpectedSweep(in_epochs(epochs), tmp_path).counted.budget.trial_tokens for epochs in (1, 3))
    assert three == pytest.approx(3 * one, abs=2)
    # The built-in corpus has 0.6 M tokens with 4,096 entries, and more with the thousand of this file.
    assert 400_000 < one < 1_200_000


def test_memory_is_asked_for_without_reading_the_corpus(tmp_path: Path) -> None:
    asked = in_epochs(1, "corpus={path: nowhere.txt, holdout: 20%}")
    expected = ExpectedSweep(asked, tmp_path)
    assert (expected.begun, expected.vocabulary_size) == (asked, 1000)
    with pytest.raises(AssertionError, match="are not counted yet"):
        _ = expected.begun.budget.trial_tokens


def test_epochs_and_tokens_together_are_a_fault() -> None:
    with pytest.raises(SettingsFileError, match="give tokens_per_trial or epochs_per_trial, not both"):
        tiny_sweep("budget.epochs_per_trial=2")


def test_neither_epochs_nor_tokens_are_a_fault_that_names_both() -> None:
    with pytest.raises(SettingsFileError, match=r"budget\.tokens_per_trial: is missing; .* or give epochs_per_trial"):
        tiny_sweep("budget={trials: 6}")
