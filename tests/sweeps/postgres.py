"""A real PostgreSQL server of its own, on a free port of this machine, for as long as a block runs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlflow_server import free_port
from patience import HANGS_AFTER_S


def _program(name: str) -> str:
    """Debian keeps them off the path; a test without them is skipped."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(places[-1]) if places else shutil.which(name)
    if found is None:
        pytest.skip("no PostgreSQL (apt-get install postgresql)")
    return found


@contextmanager
def postgres() -> Iterator[str]:
    """URI of an empty database."""
    pytest.importorskip("psycopg2", reason="no psycopg2 (pip install psycopg2-binary)")
    # PostgreSQL refuses to run as root, as which containers run tests; Debian's package makes a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pg-") as scratch:
        folder = Path(scratch) / "data"
        folder.mkdir()
        if user is not None:
            for path in (Path(scratch), folder):
                shutil.chown(path, user)

        def run(program: str, *arguments: str) -> None:
            command = [_program(program), "-D", str(folder), *arguments]
            subprocess.run(
                command, user=user, cwd=scratch, check=True, stdout=subprocess.DEVNULL, timeout=HANGS_AFTER_S
            )

        run("initdb", "--auth=trust", "--username=mlflow", "--no-sync")
        options = f"-p {port} -k {scratch} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-w", "-l", str(Path(scratch) / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
