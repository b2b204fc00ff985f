"""RAY_ADDRESS as people write it: one sentence in seconds for each address that cannot work."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from command import ROOT
from data_pipeline.schema.user_errors import InputFault
from sweeps.lanes import ray_session
from sweeps.lanes.cluster_address import ClusterError, check_address
from sweeps.lanes.ray_session import connect


def refusal(address: str, **options: float) -> str:
    with pytest.raises(ClusterError) as caught:
        check_address(address, **options)
    assert isinstance(caught.value, InputFault), "the command line would show a traceback"
    return str(caught.value)


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Address of a program that gives every caller this answer, or none and waits."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            kept = []
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.recv(100)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("ray://head:10001", "RAY_ADDRESS=auto, or submit it: ray job submit"),
        ("http://head:8265", "ray job submit --address http://head:8265 --working-dir . -- python -m sweeps sweep"),
        *(
            (given, "Give HOST:PORT")
            for given in ("head", "head:", ":6379", "head:ray", "head:0", "head:70000", "a/b:1")
        ),
    ],
)
def test_an_address_of_another_form_is_refused_with_what_to_use(address: str, remedy: str) -> None:
    words = refusal(address)
    assert words.startswith(f"RAY_ADDRESS={address}: ")
    assert remedy in words


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = refusal(f"127.0.0.1:{free.getsockname()[1]}")
    assert "Connection refused" in words
    assert "unset RAY_ADDRESS" in words


def test_a_host_of_an_unknown_name_is_said() -> None:
    assert "the host no.such.host.invalid is not known" in refusal("no.such.host.invalid:6379")


def test_another_program_at_the_address_is_said() -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        assert "another program than Ray answers there" in refusal(address)


def test_a_program_that_never_answers_is_given_up_at_the_deadline() -> None:
    with server(None) as address:
        assert "it does not answer within 1 s" in refusal(address, deadline_s=1.0)


def test_a_command_ends_with_the_sentence_and_without_a_traceback(tmp_path: Path) -> None:
    from sweep_examples import TINY

    (tmp_path / "tiny.yaml").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "sweep", str(tmp_path / "tiny.yaml"), "--results", str(tmp_path / "results")],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "http://127.0.0.1:8265"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("pretune: RAY_ADDRESS=http://127.0.0.1:8265: is an address for jobs.")
    assert "Traceback" not in done.stderr


def test_a_start_of_ray_that_fails_once_is_tried_again_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    starts: list[dict[str, object]] = []

    def busy(**arguments: object) -> None:
        starts.append(arguments)
        raise Exception("The current node timed out during startup.")  # As Ray raises it.

    monkeypatch.setattr(ray, "init", busy)
    with pytest.raises(ClusterError, match=r"timed out during startup\. The machine may be too busy") as caught:
        connect()
    assert len(starts) == 2
    assert "session_latest/logs" in str(caught.value)
    assert ray_session.ray_constants.ENABLE_RAY_CLUSTER is True


def test_a_folder_for_ray_that_is_too_long_for_sockets_is_said_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ClusterError, match="name a shorter folder, or unset RAY_TMPDIR"):
        connect()


@pytest.mark.ray
def test_the_address_of_a_real_cluster_passes() -> None:
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        check_address(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
