"""Secrets that commands are given do not come out again: not in a file, not on the terminal, not in `ps`.

Every input holds a canary. Real commands run, and every byte that they leave or show is searched for the canaries.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import pytest
import ray
from signed_files import signed_file
from typer.testing import CliRunner, Result

from command import ROOT
from patience import COMMAND_HANGS_AFTER_S, HANGS_AFTER_S
from sweep_examples import TINY
from sweeps.commands.cli import app
from sweeps.records.remote_results import working_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TOKEN, SIGNATURE, REMOTE = "cAnArY/tok+en@1", "cAnArYsignature", "cAnArYremote"
ENVIRONMENT = {
    "MLFLOW_TRACKING_PASSWORD": "cAnArYmlflow",
    "MLFLOW_TRACKING_USERNAME": "cAnArYuser",
    "AWS_SECRET_ACCESS_KEY": "cAnArYaws",
    "AWS_SESSION_TOKEN": "cAnArYsession",
}
CANARY = "canary"
ROWS = "".join(json.dumps({"text": f"text number {n % 900} of the corpus"}) + "\n" for n in range(1000))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Presigned URL of a corpus with a row to reject."""
    with signed_file("rows.jsonl", (ROWS + "{broken\n").encode(), token=TOKEN) as address:
        yield f"{address}?X-Amz-Signature={SIGNATURE}&token={quote(TOKEN, safe='')}"


@pytest.fixture
def file(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("builtin: python-docs", f"path: '{url}'"))
    return path


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's logs and sockets, which need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def leaks(text: str) -> list[str]:
    """Places of a canary in a text. All begin alike, so that also a part of one is found, raw or quoted."""
    found, place = [], text.lower().find(CANARY)
    while place >= 0:
        found.append(text[max(0, place - 80) : place + 40])
        place = text.lower().find(CANARY, place + 1)
    return found


def leaks_in(folder: Path, *, apart_from: Iterable[Path] = ()) -> dict[str, list[str]]:
    """Files below a folder that hold a canary in a name or in their bytes."""
    texts = {
        path: f"{path.relative_to(folder)}\n" + (path.read_bytes().decode("latin-1") if path.is_file() else "")
        for path in folder.rglob("*")
        if path not in apart_from and not path.is_socket()
    }
    return {str(path): found for path, text in texts.items() if (found := leaks(text))}


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit), result.exception
    assert leaks(result.output) == []
    return result


def test_the_canaries_are_found_where_they_are(tmp_path: Path, url: str) -> None:
    # A search that finds nothing anywhere would prove nothing.
    for text in (url, quote(url), quote_plus(TOKEN), json.dumps(url), *ENVIRONMENT.values()):
        assert leaks(text) != []
    (tmp_path / "file").write_bytes(b"\0\xff" + url.encode())
    (tmp_path / SIGNATURE).mkdir()
    assert len(leaks_in(tmp_path)) == 2


@pytest.mark.parametrize(
    "uri", ["s3://KEY:cAnArY/se+cret@bucket/rows.jsonl", "https://cAnArY@host/x", "sftp://me:cAn@ArYcAnArY@host/x"]
)
@pytest.mark.parametrize("command", [["plan"], ["plan", "--json"], ["prepare", "--check"], ["sweep"]])
def test_user_information_in_a_sweep_file_is_refused_with_its_line_and_the_way_that_works(
    uri: str, command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("builtin: python-docs", f"path: '{uri}'"))
    results = ["--results", str(tmp_path / "results")]
    for result in (
        invoke(*command, path, *results),
        invoke(*command, path, *results, "--set", f"corpus.path=['/rows.csv', '{uri}']"),
    ):
        assert result.exit_code == 2
        assert "line 2: corpus.path" in result.output
        assert "AWS_PROFILE" in result.output
    assert leaks_in(tmp_path, apart_from=[path]) == {}


@pytest.mark.parametrize("uri", ["s3://KEY:cAnArY/se+cret@bucket/results", "s3://bucket/results?token=cAnArY"])
def test_a_results_uri_with_a_secret_is_refused_before_it_names_a_folder(
    uri: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_option = invoke("sweep", file, "--results", uri)
    monkeypatch.setenv("PRETUNE_RESULTS", uri)
    for result in (by_option, invoke("plan", file), invoke("evaluate", "tiny"), invoke("ui")):
        assert result.exit_code == 2
        assert "AWS_PROFILE" in result.output


def test_a_results_uri_without_a_secret_has_its_folder_as_before() -> None:
    assert working_folder("s3://bucket/some results/x").name == "bucket-some-results-x"


@pytest.mark.parametrize("uri", ["http://me:cAnArY@127.0.0.1:1", "postgresql://me:cAn@ArYcAnArY@127.0.0.1:1/db"])
def test_a_tracking_address_with_a_secret_is_refused_by_every_command_that_uses_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in (["ui"], ["evaluate", "models:/tiny"], ["evaluate", "runs:/1"]):
        result = invoke(*command, "--results", tmp_path)
        assert result.exit_code == 2
        assert "MLFLOW_TRACKING_URI" in result.output


@pytest.mark.parametrize(
    "fault",
    ["?token=cAnArY", "x?token=cAnArY", "?token=***"],
    ids=["a token that the store refuses", "a file that is not there", "a record without its token"],
)
def test_a_presigned_url_that_cannot_be_read_is_said_without_its_token(
    fault: str, url: str, file: Path, tmp_path: Path
) -> None:
    asked = url.partition("?")[0] + fault
    for command in (
        ["prepare", file, "--check", "--set", f"corpus.path={asked}"],
        ["new", asked, "--output", tmp_path / "new.yaml"],
        ["plan", file, "--no-measure", "--set", "budget.epochs_per_trial=1", "--set", f"corpus.path={asked}"],
        ["evaluate", "tiny", "--corpus", asked, "--results", tmp_path],
    ):
        assert invoke(*command).exit_code == 2


def test_commands_that_read_a_presigned_url_show_it_without_its_token(file: Path, url: str, tmp_path: Path) -> None:
    for command in (
        ["plan", file, "--no-measure"],
        ["plan", file, "--no-measure", "--json"],
        ["prepare", file, "--check"],
    ):
        assert invoke(*command, "--results", tmp_path / "results").exit_code == 0
    checked = invoke("prepare", file, "--check", "--json").output
    shown = url.replace(SIGNATURE, "***").partition("token=")[0] + "token=***"
    assert [reject["file"] for reject in json.loads(checked)["first_rejects"]] == [shown]
    # The file is the user's own input, with which the URL can be read again.
    assert invoke("new", url, "--output", tmp_path / "new.yaml").exit_code == 0
    assert url in (tmp_path / "new.yaml").read_text()
    assert leaks_in(tmp_path / "results") == {}


def test_a_bug_shows_its_traceback_without_the_urls_in_it(tmp_path: Path) -> None:
    script = (
        "import sys; from sweeps.commands import cli; from sweeps.settings import sweep_file\n"
        "def fail(*_): raise RuntimeError('no answer from https://me:cAnArY@host/x?sig=cAnArY')\n"
        "sweep_file.load_sweep_file = fail; sys.argv[1:] = ['plan', 'a.yaml']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANGS_AFTER_S
    )
    assert done.returncode == 1
    assert "RuntimeError: no answer from https://***@host/x?sig=***" in done.stderr
    assert leaks(done.stdout + done.stderr) == []


@pytest.mark.ray
def test_a_sweep_and_what_follows_leave_no_secret_in_a_file_on_the_terminal_or_in_ps(
    file: Path, url: str, ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, checkout = tmp_path / "results", tmp_path / "checkout"
    checkout.mkdir()
    remote = f"https://me:{REMOTE}@host/repo.git"
    identity = ["-c", "user.name=me", "-c", "user.email=me@host"]
    for command in (["init"], ["remote", "add", "origin", remote], [*identity, "commit", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, capture_output=True)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "sweeps", "sweep", str(file), "--results", str(results)]
    changes = ("budget.trials=2", "budget.tokens_per_trial=20k", f"corpus.path={url}")
    command += [f"--set={change}" for change in changes]
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray_folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.readline()
    seen: set[str] = set()
    watcher = threading.Thread(target=lambda: watch(process, seen), daemon=True)
    watcher.start()
    try:
        printed += process.communicate(timeout=COMMAND_HANGS_AFTER_S)[0]
    finally:
        process.kill()
    watcher.join(HANGS_AFTER_S)
    assert process.returncode == 0, printed
    assert any("raylet" in arguments for arguments in seen), "the processes of Ray were not seen"
    assert any("RayTrainWorker" in arguments for arguments in seen), "the workers were not seen"
    assert leaks("\n".join([printed, *seen])) == []

    (folder,) = (path for path in results.iterdir() if path.name.startswith("tiny-"))
    assert "https://***@host/repo.git" in (folder / "report.html").read_text()
    monkeypatch.chdir(checkout)
    for follows in (["report", folder], ["evaluate", folder], ["prepare", file, "--json"]):
        assert invoke(*follows, *(["--results", results] if follows[0] != "report" else [])).exit_code == 0
    trained_again = invoke("train", folder, "--tokens", "30k", "--results", results)
    assert trained_again.exit_code == 2
    assert "give the whole URL" in trained_again.output
    assert not ray.is_initialized()
    assert (results / "mlflow.db").is_file()
    assert leaks_in(results) == {}
    assert leaks_in(ray_folder) == {}


def watch(process: subprocess.Popen[str], seen: set[str]) -> None:
    """Note the arguments of a process and of all that come of it, until it ends."""
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            for one in (root, *root.children(recursive=True)):
                seen.add(" ".join(one.cmdline()))
        except psutil.Error:
            continue
        time.sleep(0.2)
