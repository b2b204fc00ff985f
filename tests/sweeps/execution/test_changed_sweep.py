"""A changed file given again: what changed, which finished trials hold, and that they come once."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.model_files.checkpoint import MODEL_FILE
from sweep_examples import record, tiny_sweep
from sweeps.execution.changed_sweep import CHANGES_FILE, EarlierSweep, _copy, begin, changes
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SweepFolder, sweep_identity
from sweeps.records.trial_records import LOSS, ChosenBy, TrialRecord, TrialStore
from sweeps.search.sweep_budget import SweepBudget
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

DATA = "0123456789abcdef"


def settings(learning_rate: float, batch_size: int = 16, micro_batch_size: int = 8) -> dict[str, Any]:
    return {
        "training.learning_rate": learning_rate,
        "training.batch_size": batch_size,
        "training.micro_batch_size": micro_batch_size,
    }


EARLIER = (
    record(1, loss=5.0, settings=settings(2e-3), rung_losses={10_000: 5.5}, chosen_by=ChosenBy.START_WITH),
    record(2, Outcome.STOPPED, loss=5.6, settings=settings(3e-3, 32), rung_losses={10_000: 5.6}),
    record(3, Outcome.DIVERGED, settings=settings(9e-3)),
    record(4, Outcome.INFEASIBLE, settings=settings(4e-3, 32, 16)),
    record(5, Outcome.INTERRUPTED, settings=settings(5e-3)),
    record(6, loss=5.2, settings=settings(1e-3, 32, 16)),
)


def folder_of(results: Path, sweep: SweepConfig, data: str = DATA) -> SweepFolder:
    folder = SweepFolder(results, sweep, sweep_identity(sweep, data))
    folder.create()
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with a sweep of six trials, of which the best has its weights."""
    store = TrialStore(folder_of(tmp_path, tiny_sweep()).trials)
    for one in EARLIER:
        store.append_report(one, {"tokens": 10_000, LOSS: 5.5})
        store.save(one)
    checkpoint = store.folder_of(EARLIER[0]) / "step-000000000001"
    checkpoint.mkdir()
    for name in (MODEL_FILE, "optimizer.safetensors"):
        (checkpoint / name).write_bytes((2).to_bytes(8, "little") + b"{}")
    (checkpoint / "progress.json").write_text("{}")
    return tmp_path


def begun(results: Path, sweep: SweepConfig, data: str = DATA) -> tuple[list[TrialRecord], str]:
    """What a sweep begins with, and what it says."""
    said: list[str] = []
    folder = folder_of(results, sweep, data)
    store = TrialStore(folder.trials)
    begin(folder, sweep, data, store, results=results, say=said.append)
    return store.load_all(), "\n".join(said)


def origins(records: list[TrialRecord]) -> list[str]:
    return [one.taken_over_from.rpartition("/")[2] for one in records]


def test_a_changed_setting_is_named_by_its_path_with_the_old_and_the_new_value() -> None:
    before = tiny_sweep()
    now = tiny_sweep("budget.trials=9", "search.training.batch_size.choice=[16, 64]", "training.clip=null")
    assert list(changes(before, now)) == [
        "training.clip: 1.0 -> none",
        "search.training.batch_size: one of 16, 32 -> one of 16, 64",
        "budget.trials: 6 -> 9",
    ]
    assert list(changes(before, before)) == []


def test_more_trials_take_over_what_is_finished_and_name_the_sweep_compared_with(results: Path) -> None:
    records, said = begun(results, tiny_sweep("budget.trials=9"))
    (earlier,) = (folder for folder in results.glob("tiny-*") if not (folder / CHANGES_FILE).exists())
    assert f"is a new sweep; changes from {earlier.name}:" in said
    assert "budget.trials: 6 -> 9" in said
    assert f"pretune sweep {earlier / 'sweep.yaml'}" in said
    # Infeasible ones are known by the memory file, an interrupted one was never finished.
    assert origins(records) == ["trial-0001", "trial-0002", "trial-0003", "trial-0006"]
    assert [one.number for one in records] == [1, 2, 3, 4]
    assert all(one.taken_over_from.startswith(f"{earlier.name}/") for one in records)
    assert {one.chosen_by for one in records} == {ChosenBy.TAKEN_OVER}
    kept = {"number", "chosen_by", "taken_over_from"}
    by_origin = {one.name: one for one in EARLIER}
    for one, origin in zip(records, origins(records), strict=True):
        assert one.model_dump(exclude=kept) == by_origin[origin].model_dump(exclude=kept)


def test_what_another_sweep_has_trained_is_not_spent_by_this_one(results: Path) -> None:
    sweep = tiny_sweep("budget.trials=9")
    records, _ = begun(results, sweep)
    trained = [one.model_copy(update={"tokens": 30_000, "training_s": 5.0, "training_flops": 1e9}) for one in records]
    budget = SweepBudget(sweep.budget, elapsed_s=lambda: 0.0)
    assert (budget.tokens(trained), budget.flops(trained)) == (0, 0.0)
    # As trials they count: no others are wanted in their place.
    assert budget.may_start_trial([*trained, *trained])[0] == "yes"
    assert budget.may_start_trial([*trained, *trained, trained[0]])[0] == "no"


def test_a_trial_taken_over_brings_its_curve_and_its_weights(results: Path) -> None:
    sweep = tiny_sweep("budget.trials=9")
    records, _ = begun(results, sweep)
    store = TrialStore(folder_of(results, sweep).trials)
    assert [report["tokens"] for report in store.reports(records[0])] == [10_000]
    assert (store.folder_of(records[0]) / "step-000000000001" / MODEL_FILE).is_file()
    # A curve that grows must not grow in the folder where it comes from.
    store.append_report(records[0], {"tokens": 20_000, LOSS: 5.0})
    sweep_name, _, trial_name = records[0].taken_over_from.partition("/")
    origin = results / sweep_name / "trials" / trial_name
    assert len((origin / "reports.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "override",
    ["training.clip=0.5", "budget.tokens_per_trial=60k", "model.layers=2", "objective.masked_lm.masking_rate=0.3"],
)
def test_nothing_is_taken_over_where_training_would_be_another(results: Path, override: str) -> None:
    records, said = begun(results, tiny_sweep(override))
    assert records == []
    assert "0 finished trials are still valid" in said


def test_nothing_is_taken_over_from_other_data(results: Path) -> None:
    records, said = begun(results, tiny_sweep("budget.trials=9"), data="fedcba9876543210")
    assert records == []
    assert "the content of the corpus" in said


def test_trials_outside_the_new_space_stay_where_they_are(results: Path) -> None:
    records, _ = begun(results, tiny_sweep("search.training.batch_size.choice=[16]"))
    assert origins(records) == ["trial-0001", "trial-0003"]


def test_a_setting_that_is_no_longer_swept_is_matched_by_the_value_it_has_now(results: Path) -> None:
    fixed = tiny_sweep("training.micro_batch_size=4").model_dump(mode="json")
    # Another micro-batch is another speed, and nothing else.
    del fixed["search"]["training.micro_batch_size"]
    records, _ = begun(results, SweepConfig.model_validate(fixed))
    assert origins(records) == ["trial-0001", "trial-0002", "trial-0003", "trial-0006"]
    assert all("training.micro_batch_size" not in one.settings for one in records)


def test_a_trial_that_early_stopping_ended_counts_only_under_the_same_rule(results: Path) -> None:
    records, _ = begun(results, tiny_sweep("early_stopping.reduction_factor=2"))
    assert origins(records) == ["trial-0001", "trial-0003", "trial-0006"]
    assert [one.rung_losses for one in records] == [{}, {}, {}]


def test_a_trial_that_would_win_and_has_lost_its_weights_is_not_taken_over(results: Path) -> None:
    (earlier,) = results.glob("tiny-*")
    store = TrialStore(earlier / "trials")
    store.save(record(7, loss=4.5, settings=settings(2.5e-3)))
    records, _ = begun(results, tiny_sweep("budget.trials=9"))
    assert origins(records) == ["trial-0001", "trial-0002", "trial-0003", "trial-0006"]


def test_killed_while_taking_over_it_goes_on_and_takes_nothing_twice(results: Path) -> None:
    sweep = tiny_sweep("budget.trials=9")
    whole, _ = begun(results, sweep)
    folder = folder_of(results, sweep)
    (folder.path / CHANGES_FILE).unlink()
    (folder.trials / "trial-0004" / "trial.json").unlink()
    assert begun(results, sweep)[0] == whole


def test_what_was_begun_is_begun_once(results: Path) -> None:
    sweep = tiny_sweep("budget.trials=9")
    records, _ = begun(results, sweep)
    (earlier,) = (folder for folder in results.glob("tiny-*") if not (folder / CHANGES_FILE).exists())
    TrialStore(earlier / "trials").save(record(8, loss=6.0, settings=settings(1.5e-3)))
    assert begun(results, sweep) == (records, "")
    said = json.loads((folder_of(results, sweep).path / CHANGES_FILE).read_text())
    assert said["compared_with"] == earlier.name
    assert said["changes"] == ["budget.trials: 6 -> 9"]


def test_a_first_sweep_of_its_name_compares_with_nothing(tmp_path: Path) -> None:
    assert begun(tmp_path, tiny_sweep()) == ([], "")


STAGED = """\
name: staged
corpus: {builtin: python-docs}
model: {family: encoder, layers: 1, width: 32, heads: 2}
objective: {masked_lm: {}}
stages:
  - {sequence_length: 16, tokens: 1000}
  - {sequence_length: 32, tokens: 1000}
"""


@pytest.mark.parametrize(("first_length", "num_taken_over"), [(16, 1), (24, 0)])
def test_a_training_is_taken_over_only_where_its_stages_are_the_same(
    tmp_path: Path, first_length: int, num_taken_over: int
) -> None:
    earlier = resolve_sweep(read_yaml(STAGED), source="staged.yaml")
    TrialStore(folder_of(tmp_path, earlier).trials).save(record(1, Outcome.DIVERGED, settings={}))
    text = STAGED.replace("length: 16", f"length: {first_length}") + "purpose: Another file, and the same training.\n"
    taken, _ = begun(tmp_path, resolve_sweep(read_yaml(text), source="staged.yaml"))
    assert len(taken) == num_taken_over


def test_a_link_that_somebody_put_into_a_trials_folder_is_not_copied_to_the_next_sweep(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "step-10").mkdir(parents=True)
    (old / "log.txt").write_text("starts")
    (old / "stolen.txt").symlink_to(tmp_path / "key")
    (old / "step-10" / "stolen.json").symlink_to(tmp_path / "key")
    _copy(old, new)
    assert sorted(path.name for path in new.rglob("*")) == ["log.txt", "step-10"]


def test_a_trial_whose_settings_break_a_rule_beside_the_changed_file_is_not_taken_over(tmp_path: Path) -> None:
    widths = "search={model.width: {choice: [30, 32]}}"
    before, now = tiny_sweep(widths), tiny_sweep(widths, "model.heads=5", "model.width=30")
    earlier = EarlierSweep(tmp_path, before, has_same_data=True)
    assert not earlier.is_valid_in(now, record(1, settings={"model.width": 32}, loss=5.0))
