"""A finished sweep as objects, beside the files and commands that it is read from."""

import html
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from rich.console import Console

import pretune
from command import ROOT, run
from finished_sweep import TinySweep
from sweep_examples import record
from sweeps.analysis.result_tables import best_trial
from sweeps.python.trials_table import LiveTable, trials_table
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord, TrialStore


@pytest.fixture(scope="module")
def finished(tiny_sweep: TinySweep) -> pretune.SweepResults:
    (folder,) = tiny_sweep.results.glob("tiny-*/")
    loaded = pretune.load(folder)
    assert isinstance(loaded, pretune.SweepResults)
    return loaded


@pytest.mark.ray
def test_trials_equal_trials_csv(finished: pretune.SweepResults) -> None:
    trials = finished.trials
    pd.testing.assert_frame_equal(
        trials, pd.read_csv(finished.folder / "trials.csv", keep_default_na=False, na_values=[""])
    )
    assert list(trials["rank"]) == list(range(1, len(trials) + 1))


@pytest.mark.ray
def test_the_best_is_that_of_the_records(finished: pretune.SweepResults) -> None:
    wanted = best_trial(TrialStore(finished.folder / "trials").load_all())
    best = finished.best
    assert wanted is not None
    assert best is not None
    assert (best.name, best.settings, best.loss) == (wanted.name, wanted.settings, wanted.loss)
    assert (best.folder / "trial.json").is_file()


@pytest.mark.ray
def test_the_model_is_the_one_that_the_commands_use(finished: pretune.SweepResults) -> None:
    import json

    model = finished.model()
    text = "the <mask> of a list"
    code, printed = run("fill-mask", finished.folder, text, "--top", "3", "--json")
    assert code == 0, printed
    by_command = [(one["token"], one["probability"]) for one in json.loads(printed.splitlines()[-1])[0]]
    ((*filled,),) = model.fill_mask(text, num_candidates=3)
    assert [token for token, _ in filled] == [token for token, _ in by_command]
    # The same fp32 sums, possibly on another number of threads.
    assert [share for _, share in filled] == pytest.approx([share for _, share in by_command], rel=1e-4)
    ids = model.encode("a list of texts")
    assert isinstance(model, torch.nn.Module)
    assert model(ids).shape == (1, ids.shape[1], model.tokenizer.get_vocab_size())
    assert not model.training


@pytest.mark.ray
def test_a_prediction_for_a_trial_holds_its_loss(finished: pretune.SweepResults) -> None:
    best = finished.best
    assert best is not None
    found = finished.predict(best.settings)
    assert found.low <= best.loss <= found.high
    with pytest.raises(pretune.InputFault, match="missing"):
        finished.predict({})
    with pytest.raises(pretune.InputFault, match=r"training\.beta2 not swept"):
        finished.predict({**best.settings, "training.beta2": 0.9})


@pytest.mark.ray
def test_a_notebook_shows_the_table_and_the_report_without_script(finished: pretune.SweepResults) -> None:
    page = finished._repr_html_()
    best = finished.best
    assert best is not None
    assert best.name in page
    assert f"{best.loss:.4f}" in page
    frame = finished.report._repr_html_()
    assert frame.startswith("<iframe sandbox ")
    assert html.unescape(frame.split('srcdoc="')[1].split('" style=')[0]) == finished.report.path.read_text("utf-8")


@pytest.mark.ray
def test_a_model_folder_is_loaded_as_a_model(finished: pretune.SweepResults) -> None:
    model = pretune.load(finished.folder / "best")
    assert isinstance(model, pretune.LoadedModel)
    ids = model.encode("a list")
    torch.testing.assert_close(model(ids), finished.model()(ids))


def test_a_folder_that_is_neither_sweep_nor_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pretune.InputFault, match="holds no trained model"):
        pretune.load(tmp_path)


def test_texts_of_others_enter_a_table_escaped() -> None:
    trap = record(1, loss=1.0, settings={"training.<script>": "<img src=x>\x1b[31m"})
    page = trials_table([trap])
    assert "<img" not in page
    assert "<script" not in page
    assert "\x1b" not in page


class _Pages(LiveTable):
    """Shows its pages to the test."""

    pages: ClassVar[list[str]] = []

    def display(self, page: str) -> Callable[[str], None]:
        self.pages.append(page)
        return self.pages.append


def test_a_live_table_replaces_itself_at_each_event() -> None:
    records: list[TrialRecord] = []
    with _Pages(Console(), lambda: records, num_trials=2, tokens_per_trial=100, num_refused=lambda: 1) as table:
        records.append(record(1, outcome=None, tokens=50))
        table.on_event(TrialEvent.STARTED, records[0], None)
        records[0] = record(1, loss=2.5, tokens=100)
        table.on_event(TrialEvent.ENDED, records[0], None)
    first, second, *_, last = _Pages.pages
    assert "0% of at most 200 tokens" in first
    assert "25% of at most 200 tokens" in second
    assert "50 (50%)" in second
    assert "2.5000" in last
    assert "1 refused before launch" in last


def test_facts_are_plain_text_where_the_environment_asks_for_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # As kernels of notebooks do.
    facts = pretune.ShownFacts.of({"trials": 3}, lambda console: console.print("[3] trials", style="bold"))
    assert (facts["trials"], repr(facts)) == (3, "[3] trials\n")
    assert "\x1b" not in facts._repr_html_()


def _python(code: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([str(ROOT), str(ROOT / "sweeps/python")])
    return subprocess.run(
        [sys.executable, *more, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_importing_pretune_imports_neither_ray_nor_mlflow_and_changes_no_environment(tmp_path: Path) -> None:
    done = _python(
        "import os, sys; before = dict(os.environ); import pretune; "
        "print([name for name in ('ray', 'mlflow', 'optuna', 'scipy') if name in sys.modules], before == os.environ)",
        tmp_path,
    )
    # torch sets a variable of its own while it loads on some machines; ours set none.
    assert done.stdout.strip().startswith("[]"), done.stdout + done.stderr


@pytest.mark.long
def test_a_module_of_the_users_folder_in_place_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "core.py").write_text("print('theirs')")
    done = _python("import pretune", tmp_path)
    assert "ImportError" in done.stderr
    assert f"{tmp_path / 'core.py'} would be imported in place of pretune's own package core" in done.stderr
    assert "theirs" not in done.stdout


def test_the_names_of_pretune_are_those_it_lists() -> None:
    public = {name for name in vars(pretune) if not name.startswith("_")} - {"Path", "find_spec"}
    assert public == set(pretune.__all__)
