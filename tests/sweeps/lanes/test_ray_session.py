"""Ray as a sweep on one machine starts it."""

import json
import subprocess
import sys

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
ray.get(ray.remote(os.getpid).remote())
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
folder = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[3]
print(json.dumps({"addresses": listening, "mode": folder.stat().st_mode & 0o777, "folder": str(folder)}))
"""


@pytest.mark.ray
def test_ray_on_one_machine_listens_to_it_alone_and_keeps_its_files_from_other_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run([sys.executable, "-c", _SESSION], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    # Ray has several servers, of which each could listen to the world.
    assert len(found["addresses"]) > 4
    assert {address.removeprefix("::ffff:") for address in found["addresses"]} == {"127.0.0.1"}
    assert found["mode"] == 0o700, found["folder"]
