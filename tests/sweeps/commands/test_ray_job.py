"""A sweep submitted to a Ray cluster with token authentication, as `ray job submit` sends it."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from command import ROOT, processes_marked
from patience import COMMAND_HANGS_AFTER_S, wait_until
from sweep_examples import TINY
from sweeps.commands.command_frame import results_folder

_RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Cluster:
    """A local cluster of one node."""

    address: str
    client: str
    """Of Ray Client."""
    folder: Path
    environment: dict[str, str]
    """What its clients need: the token, and a home of their own."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Ray puts sockets there, and a socket's path has at most 107 characters: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="ray-job-"))
    mark = folder.name
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PRETUNE_"))}
    environment |= {"RAY_AUTH_MODE": "token", "HOME": str(folder)}
    environment |= {"PATH": f"{_RAY.parent}:{os.environ['PATH']}", "PRETUNE_TEST_MARK": mark}
    # Into ~/.ray/auth_token of that home.
    subprocess.run([_RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    # Ports of its own, so that it does not meet another cluster on this machine.
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port", "dashboard-port")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    options = ["--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"]
    options += [f"--{name}={port}" for name, port in ports.items()]
    head = subprocess.Popen(
        [_RAY, "start", "--head", "--block", *options],
        env=environment,
        stdout=(folder / "head.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        cluster = Cluster(
            f"http://127.0.0.1:{ports['dashboard-port']}",
            f"ray://127.0.0.1:{ports['ray-client-server-port']}",
            folder,
            environment,
        )
        _wait_for(cluster, head)
        yield cluster
    finally:
        for process in processes_marked(mark):
            process.terminate()
        psutil.wait_procs(processes_marked(mark), timeout=5)
        for process in processes_marked(mark):
            process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
    assert processes_marked(mark) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working copy as a user has it: our files, an environment and earlier results."""
    tree = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    for name in (".venv/bin/large", "results/earlier/large"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text("must stay here")
    two = TINY.replace("budget: {trials: 6, tokens_per_trial: 30k}", "budget: {trials: 2, tokens_per_trial: 20k}")
    # One lane: a second would take longer to start than these trials take.
    (tree / "small.yaml").write_text(f"{two}early_stopping: {{method: none}}\nresources: {{concurrent_trials: 1}}\n")
    (tree / "broken.yaml").write_text(two.replace("layers: 1", "layesr: 1"))
    return tree


@pytest.mark.ray
def test_a_submitted_sweep_runs_to_its_end_says_so_and_uploads_neither_environment_nor_results(
    cluster: Cluster, tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.address}/api/jobs/")

    results = tmp_path / "results"
    environment = json.dumps({"env_vars": {"PRETUNE_RESULTS": results.as_uri()}})

    def ray_job(verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [_RAY, "job", verb, "--address", cluster.address, *arguments],
            cwd=tree,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_HANGS_AFTER_S,
        )

    def submit(file: str) -> "subprocess.CompletedProcess[str]":
        how = ["--submission-id", Path(file).stem, "--working-dir", ".", "--runtime-env-json", environment]
        return ray_job("submit", *how, "--", "python", "-m", "sweeps", "sweep", file)

    submitted = submit("small.yaml")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    (summary_file,) = results.glob("tiny-*/summary.json")
    summary = json.loads(summary_file.read_text())
    assert summary["status"] == "finished"
    assert summary["outcomes"] == {"COMPLETED": 2}
    logs = ray_job("logs", "small").stdout
    for line in ("trial-0001  starts", "trial-0002  COMPLETED", "best     trial-000"):
        assert f"\n{line}" in logs
    # No live table, whose redrawing would fill the log; Ray's command line colours its own lines above ours.
    assert "\x1b[" not in logs.partition("Running entrypoint")[2]
    assert "Job 'small' succeeded" in ray_job("status", "small").stdout

    broken = submit("broken.yaml")
    assert broken.returncode != 0
    assert "model.layesr: is not a setting; did you mean layers?" in broken.stdout + broken.stderr
    assert "Job 'broken' failed" in ray_job("status", "broken").stdout

    (uploaded,) = (cluster.folder / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (uploaded / "small.yaml").exists()
    assert (uploaded / "sweeps" / "configs" / "quickstart.yaml").exists()
    assert [path for path in uploaded.rglob("*") if path.name == "large" or path.name in (".venv", "results")] == []


_SCRIPT = """\
import sys, ray, pretune

if __name__ == "__main__":
    if sys.argv[1] == "client":
        ray.init(sys.argv[2])
    sweep = pretune.sweep("small.yaml", results=sys.argv[3])
    print("status", sweep.status, len(sweep.trials))
"""


@pytest.mark.slow
def test_a_script_runs_a_sweep_as_a_job_and_is_refused_through_ray_client(
    cluster: Cluster, tree: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(tree / "small.yaml", work)
    (work / "script.py").write_text(_SCRIPT)
    arguments = ["python", "script.py", "job", "-", str(tmp_path / "results")]
    submitted = subprocess.run(
        [_RAY, "job", "submit", "--address", cluster.address, "--working-dir", ".", "--", *arguments],
        cwd=work,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_HANGS_AFTER_S,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "status finished 2" in submitted.stdout

    through_client = subprocess.run(
        [sys.executable, "script.py", "client", cluster.client, str(tmp_path / "others")],
        cwd=work,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_HANGS_AFTER_S,
    )
    assert through_client.returncode != 0
    assert "Ray Client" in through_client.stderr.splitlines()[-1]
    assert "ray job submit" in through_client.stderr.splitlines()[-1]


def test_results_of_a_job_outlive_the_copy_of_the_working_folder_that_it_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRETUNE_RESULTS", raising=False)
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert results_folder(None) == Path.home() / "pretune" / "results"
    assert results_folder("given") == Path("given")
    assert results_folder("file:///given/here") == Path("/given/here")
    monkeypatch.chdir(tmp_path)
    assert results_folder(None) == Path("results")


def _free_ports(count: int) -> list[int]:
    # Above what Ray gives its workers, below what the system gives to whoever asks for any port: nobody takes them
    # between this look and the start of the cluster.
    free: list[int] = []
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            if len(free) < count and probe.connect_ex(("127.0.0.1", port)) != 0:
                free.append(port)
    return free


def _wait_for(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        assert head.poll() is None, (cluster.folder / "head.log").read_text()
        try:
            with urllib.request.urlopen(f"{cluster.address}/api/version", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True  # It answers, and asks for the token.
        except OSError:
            return False

    wait_until(answers, "the cluster never answered")
