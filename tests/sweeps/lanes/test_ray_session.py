"""Ray as a sweep on one machine starts it."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import ray

from command import ROOT
from patience import HANGS_AFTER_S
from sweeps.lanes import ray_session

_SESSION = """
from sweeps.commands.module_search import put_ours_first

put_ours_first()
import json
import os
from pathlib import Path

import psutil
import ray
from sweeps.lanes.ray_session import connect

connect()
names = ("colorsys", "core", "data_pipeline", "sweeps", "tokenizers")
modules = ray.get(ray.remote(lambda: {name: __import__(name).__file__ for name in names}).remote())
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
folder = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[3]
mode = folder.stat().st_mode & 0o777
print(json.dumps({"modules": modules, "addresses": listening, "mode": mode, "folder": str(folder)}))
"""


@pytest.mark.ray
def test_ray_on_one_machine_listens_to_it_alone_and_keeps_its_files_and_modules_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # An empty entry is the current folder.
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}")
    monkeypatch.setenv("HOME", "/dev/null/none")
    for name in ("colorsys", "core", "data_pipeline", "tokenizers"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder has run')")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{_SESSION}"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Ray has several servers, of which each could listen to the world.
    assert len(found["addresses"]) > 4
    assert {address.removeprefix("::ffff:") for address in found["addresses"]} == {"127.0.0.1"}
    assert Path(found["modules"].pop("colorsys")).is_relative_to(sysconfig.get_path("stdlib"))
    assert not Path(found["modules"].pop("tokenizers")).is_relative_to(tmp_path)
    assert all(Path(file).is_relative_to(ROOT) for file in found["modules"].values()), found["modules"]
    assert found["mode"] == 0o700, found["folder"]


def test_a_limit_of_open_files_under_which_ray_would_die_is_refused_before_it_starts() -> None:
    code = "from sweeps.lanes.ray_session import connect\nconnect()"
    command = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": "local"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "a process may have 100 files open here, and Ray needs 256. Raise the limit (ulimit -n 4096). Then run the "
        "same command again."
    )


def test_processes_of_a_start_that_failed_do_not_run_beside_those_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    of_others, *started = [subprocess.Popen(["sleep", "600"])]

    def starts_slowly(**_: object) -> None:
        started.append(subprocess.Popen(["sleep", "600"]))
        if len(started) == 1:
            raise RuntimeError("the current node timed out during startup")

    monkeypatch.setattr(ray, "init", starts_slowly)
    try:
        ray_session._init_twice({})
        assert started[0].wait(HANGS_AFTER_S) == -signal.SIGKILL
        assert [one.poll() for one in (of_others, started[1])] == [None, None]
    finally:
        for one in (of_others, *started):
            one.kill()
            one.wait()
