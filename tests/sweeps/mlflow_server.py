"""A real MLflow server, on a free port of this machine, that can be stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from patience import wait_until


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """One server process and its folder."""

    def __init__(self, folder: Path, *, store: str | None = None) -> None:
        """
        Args:
            store: URI of its database; a SQLite file in its folder if not given.
        """
        self._folder, self._port = folder, free_port()
        self._store = store or f"sqlite:///{folder / 'server.db'}"
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        store = ["--backend-store-uri", self._store]
        artifacts = ["--artifacts-destination", str(self._folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *where],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, "the server never answered")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False

    def stand_still(self) -> None:
        """It takes connections and answers none of them until it is killed or continued."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again, after it stood still."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it without warning, as a machine that goes down."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
