"""The winner as MLflow has it: served by MLflow's own commands, and registered once."""

import json
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from small_models import exported
from sweep_examples import record
from sweeps.commands.cli import app
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialStore
from sweeps.tracking.mlflow_model import save_model
from sweeps.tracking.mlflow_store import EXPERIMENT
from sweeps.tracking.mlflow_tracking import Tracking
from sweeps.trained_models.trained_model import load_trained

GIVEN = {"encoder": "the <mask> cat sees", "decoder": "the red cat"}
ENDED = {"started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:01:00+00:00"}


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Family, folder of transformers, and the model that MLflow has of it."""
    folder = tmp_path_factory.mktemp(request.param)
    best = exported(folder, request.param)
    save_model(best, folder / "model", example=GIVEN[request.param])
    return request.param, best, folder / "model"


def test_the_model_answers_a_table_of_texts_as_our_own_commands_do(saved: tuple[str, Path, Path]) -> None:
    family, best, model = saved
    texts = [GIVEN[family], GIVEN[family].replace("cat", "old house"), GIVEN[family].replace("the", "a")]
    answers = mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"text": texts}))
    ours = load_trained(best)
    if family == "encoder":
        likeliest = [ours.fill(text, num_candidates=1)[0][0][0] for text in texts]
        assert list(answers["restored"]) == [
            text.replace("<mask>", filling) for text, filling in zip(texts, likeliest, strict=True)
        ]
    else:
        assert list(answers.columns) == ["continuation"]
        assert len(set(answers["continuation"])) == len(texts)


def test_continuations_hold_on_to_their_parameters(tmp_path: Path) -> None:
    save_model(exported(tmp_path, "decoder"), tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    text = pd.DataFrame({"text": ["the red cat"]})

    def drawn(**params: Any) -> str:
        return str(model.predict(text, params=params)["continuation"][0])

    assert drawn(temperature=1.5, seed=1) == drawn(temperature=1.5, seed=1)
    assert drawn(temperature=1.5, seed=1) != drawn(temperature=1.5, seed=2)
    assert drawn(max_new_tokens=12).startswith(drawn(max_new_tokens=3))
    # The model has 32 positions, and an answer stays within them.
    assert drawn(max_new_tokens=1000) == drawn(max_new_tokens=31)


def test_a_text_without_a_mask_comes_back_as_it_is_and_one_too_long_is_named(tmp_path: Path) -> None:
    save_model(exported(tmp_path, "encoder"), tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    whole = "the old  dog,  as written"
    assert list(model.predict(pd.DataFrame({"text": [whole]}))["restored"]) == [whole]
    with pytest.raises(ValueError, match=r"the text of row 1 has \d+ tokens, and the model takes 32"):
        model.predict(pd.DataFrame({"text": [whole, "the cat " * 40]}))


def test_nothing_of_the_model_is_a_pickle(saved: tuple[str, Path, Path]) -> None:
    _, _, model = saved
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {"MLmodel", "served_model.py", "model.safetensors", "input_example.json"} <= {path.name for path in files}
    assert [path.name for path in files if is_pickle(path.read_bytes())] == []


def is_pickle(content: bytes) -> bool:
    """Whether bytes are a pickle from beginning to end; text is none, though letters are opcodes of old protocols."""
    if not content.startswith(b"\x80"):
        return False
    try:
        return any(True for _ in pickletools.genops(content))
    except ValueError:
        return False


def test_what_finds_pickles_finds_one() -> None:
    assert is_pickle(pickle.dumps({"a": 1}))
    assert not is_pickle(b"plain text")


def run(*arguments: object, fails: bool = False) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == (2 if fails else 0), done.output
    return done.output


class Registered:
    """A finished sweep whose winner lies in its folder, and what the registry has of it."""

    def __init__(self, results: Path) -> None:
        self.results, self.folder = results, results / "tiny-12345678"
        exported(self.folder, "encoder")
        self.store = TrialStore(self.folder / "trials")
        sample = {"text": "the ⟦red⟧ cat sees a ⟦red⟧ house", "made": "", "loss_nats_per_token": 1.0}
        (self.folder / "summary.json").write_text(json.dumps({"samples": [sample]}))
        self.record = record(1, Outcome.COMPLETED, 4.0, **ENDED)
        self.store.save(self.record)
        self.client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")

    def run(self, status: SweepStatus = SweepStatus.FINISHED, identity: str = "one") -> str:
        tracking = Tracking(self.results, say=print)
        tracking.start(name="tiny", identity=identity, tags={}, params={}, store=self.store)
        tracking.on_event(TrialEvent.ENDED, self.record, None)
        tracking.finish(status=status, records=[self.record], folder=self.folder)
        assert tracking.not_taken == ""
        return tracking.model_uri

    @property
    def experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        assert found is not None
        return str(found.experiment_id)

    def versions(self) -> list[Any]:
        return sorted(self.client.search_model_versions("name = 'tiny'"), key=lambda version: int(version.version))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Registered:
    results = tmp_path_factory.mktemp("results")
    shutil.copy(empty_store, results / "mlflow.db")
    sweep = Registered(results)
    assert sweep.run(status=SweepStatus.INTERRUPTED) == ""
    assert sweep.run() == "models:/tiny/1"
    return sweep


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_sweep_registers_its_winner_once_however_often_it_goes_on(registered: Registered) -> None:
    assert registered.run() == "models:/tiny/1"
    (version,) = registered.versions()
    assert version.tags["pretune.trial"] == "trial-0001"
    assert float(version.tags["final/holdout_loss_nats_per_token"]) == 4.0
    assert registered.client.get_run(version.run_id).data.tags["pretune.kind"] == "sweep"


@pytest.mark.long
def test_mlflow_models_predict_restores_masks_with_the_registered_winner(
    registered: Registered, tmp_path: Path
) -> None:
    given = pd.DataFrame({"text": ["the <mask> cat sees", "an <mask> dog"]})
    given.to_csv(tmp_path / "texts.csv", index=False)
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local", "-m", "models:/tiny/1"]
    command += ["-i", tmp_path / "texts.csv", "-t", "csv", "-o", tmp_path / "answers.json"]
    uri = f"sqlite:///{registered.results / 'mlflow.db'}"
    # Nothing of pretune lies on the way of imports: the model stands by itself.
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())["predictions"]
    ours = load_trained(registered.folder / "best")
    expected = [text.replace("<mask>", ours.fill(text, num_candidates=1)[0][0][0]) for text in given["text"]]
    assert [answer["restored"] for answer in answers] == expected


def test_the_input_example_is_a_text_of_the_holdout_with_a_mask(registered: Registered) -> None:
    (version,) = registered.versions()
    model = mlflow.pyfunc.load_model(version.source)
    assert list(model.input_example["text"]) == ["the <mask> cat sees a red house"]
    assert model.metadata.signature.inputs.input_names() == ["text"]
    assert model.metadata.signature.outputs.input_names() == ["restored"]


def test_commands_find_a_model_by_its_place_in_mlflow(registered: Registered) -> None:
    (version,) = registered.versions()
    registered.client.set_registered_model_alias("tiny", "chosen", version.version)
    best = run("fill-mask", registered.folder / "best", GIVEN["encoder"], "--json")
    (trial,) = registered.client.search_runs([registered.experiment], "tags.`pretune.kind` = 'trial'")
    for place in (
        "models:/tiny/1",
        "models:/tiny@chosen",
        "models:/tiny",
        f"runs:/{version.run_id}",
        f"runs:/{version.run_id}/model",
        f"runs:/{trial.info.run_id}",
    ):
        assert run("fill-mask", place, GIVEN["encoder"], "--json", "--results", registered.results) == best, place


def test_a_model_that_mlflow_has_not_is_said_with_what_there_is(registered: Registered, tmp_path: Path) -> None:
    here = ("--results", registered.results)
    assert "it has: tiny" in run("fill-mask", "models:/other", "a <mask>", *here, fails=True)
    assert "cannot be fetched" in run("evaluate", "models:/tiny/9", *here, fails=True)
    assert "cannot be fetched" in run("export", "runs:/0123", tmp_path / "copy", *here, fails=True)
    assert "there is no MLflow store in" in run("generate", "models:/tiny", "--results", tmp_path, fails=True)
