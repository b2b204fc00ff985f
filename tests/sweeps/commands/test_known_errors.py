"""Errors of the machine, the network and libraries: one sentence with its remedy, and exit code 2."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from click.testing import Result
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from command import ROOT
from data_pipeline.schema.user_errors import InputFault
from patience import HANGS_AFTER_S
from sweeps.commands.command_frame import explains_faults
from sweeps.commands.known_errors import sentence_of


class Shape(BaseModel):
    """Settings of two numbers."""

    width: int
    heads: int


def raised(act: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # Any: the kind is the question.
        act()
    return caught.value


def told(error: Exception) -> Result:
    """A command that ends in this error."""
    app = typer.Typer()

    @app.command()
    @explains_faults
    def fail() -> None:
        raise error

    return CliRunner().invoke(app)


def wrapped(error: Exception) -> Exception:
    try:
        raise RuntimeError("a layer above") from error
    except RuntimeError as above:
        return above


@pytest.mark.parametrize(
    "code",
    ["ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "EROFS", "EACCES", "ENOENT", "EIO", "ESTALE", "ENAMETOOLONG", "ENOMEM"],
)
def test_an_error_of_the_system_is_told_with_its_place_and_a_remedy(code: str) -> None:
    number = getattr(errno, code)
    done = told(wrapped(OSError(number, os.strerror(number), "/mnt/results/trial.json")))
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert line.startswith("pretune: /mnt/results/trial.json: ")
    assert line.endswith(". Then run the same command again.")
    assert line.count(". ") == 2, "reason, remedy, the way on"


def test_a_lost_connection_is_told_with_the_way_on() -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = told(raised(lambda: socket.create_connection(("127.0.0.1", port))))
    assert done.exit_code == 2
    assert "refused" in done.output
    assert "run the same command again" in done.output
    unknown = told(raised(lambda: socket.getaddrinfo("no.such.host.invalid", 80)))
    assert unknown.exit_code == 2
    assert "A connection failed" in unknown.output


def test_settings_that_are_not_valid_are_told_all_at_once() -> None:
    error = raised(lambda: Shape(width="wide", heads=[3]))  # type: ignore[arg-type]
    assert isinstance(error, ValidationError)
    done = told(error)
    assert done.exit_code == 2
    assert "width = 'wide'" in done.output
    assert "heads = [3]" in done.output
    assert "https://errors.pydantic.dev" not in done.output


def test_errors_of_libraries_are_known_by_the_modules_that_are_loaded() -> None:
    import requests
    import sqlalchemy
    from mlflow.exceptions import MlflowException
    from ray.exceptions import LocalRayletDiedError, RayTaskError

    unreadable = raised(lambda: sqlalchemy.create_engine("sqlite:////dev/null/x.db").connect())
    for error in (unreadable, MlflowException("no run"), requests.ConnectionError("gone"), LocalRayletDiedError()):
        sentence = sentence_of(error)
        assert sentence is not None, error
        assert "un the same command again" in sentence
    # Ray's copy of a worker's error prints as the traceback of the worker.
    full = RayTaskError("f", "Traceback ...", OSError(errno.ENOSPC, "No space left on device", "/tmp/x"))
    told_by_ray = sentence_of(full.as_instanceof_cause())
    assert told_by_ray == "/tmp/x: the disk is full. Make room there. Then run the same command again."
    fault = RayTaskError("f", "Traceback ...", InputFault("line 3: no such column"))
    assert sentence_of(fault.as_instanceof_cause()) == "line 3: no such column"


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), AssertionError("x"), wrapped(TypeError("x"))])
def test_an_error_of_unknown_kind_is_no_fault_of_the_user(error: Exception) -> None:
    assert sentence_of(error) is None
    assert told(error).exception is error


def test_a_bug_names_a_file_that_explains_it_without_secrets(tmp_path: Path) -> None:
    script = (
        "import sys; from sweeps.commands import cli; from sweeps.settings import sweep_file\n"
        "def fail(*_): raise RuntimeError('no answer from https://me:cAnArY@host/x')\n"
        "sweep_file.load_sweep_file = fail; sys.argv[1:] = ['plan', 'a.yaml']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )
    assert done.returncode == 1
    (report,) = tmp_path.rglob("bug-*.txt")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pretune: this is a bug of pretune")
    assert last.endswith(f"send {report}.")
    text = report.read_text()
    assert "command   pretune plan a.yaml" in text
    assert "RuntimeError: no answer from https://***@host/x" in text
    assert "canary" not in text.lower()
    assert report.stat().st_mode & 0o077 == 0 or report.parent.stat().st_mode & 0o077 == 0


def test_a_current_folder_that_was_removed_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", "sweeps", "report", "results/x", "results/y"],
        cwd=gone,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
