"""Ray as a sweep on one machine starts it."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from command import ROOT

_SESSION = """
import json
import os
from pathlib import Path

import psutil
import ray
from sweeps.lanes.ray_session import connect

connect()
module = ray.get(ray.remote(lambda: __import__("colorsys").__file__).remote())
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
folder = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[3]
mode = folder.stat().st_mode & 0o777
print(json.dumps({"module": module, "addresses": listening, "mode": mode, "folder": str(folder)}))
"""


@pytest.mark.ray
def test_ray_on_one_machine_listens_to_it_alone_and_keeps_its_files_and_modules_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "colorsys.py").write_text("raise SystemExit('a module of the current folder has run')")
    command = [sys.executable, "-P", "-c", _SESSION]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Ray has several servers, of which each could listen to the world.
    assert len(found["addresses"]) > 4
    assert {address.removeprefix("::ffff:") for address in found["addresses"]} == {"127.0.0.1"}
    assert Path(found["module"]).is_relative_to(sysconfig.get_path("stdlib"))
    assert found["mode"] == 0o700, found["folder"]
