"""The address of a Ray cluster, checked in seconds: its form, that Ray answers there, that this machine is a node.

Ray itself waits minutes for an address where nobody listens, and names neither the address nor the remedy.
"""

import os
import socket

import psutil

from data_pipeline.schema.user_errors import InputFault

DEADLINE_S = 20.0
"""Longest wait for an answer from the address."""

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""Begin of each gRPC connection: the preface of HTTP/2 and empty settings (RFC 9113, section 3.4)."""
_SETTINGS_FRAME = 4
"""Type of the frame with which a server answers, in its fourth byte."""
_UNSET = "or unset RAY_ADDRESS to start Ray on this machine"


class ClusterError(InputFault):
    """The Ray cluster of RAY_ADDRESS cannot be used, or Ray does not start; the message has the remedy."""


def check_address(given: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Check that RAY_ADDRESS names a Ray cluster of which this machine is a node.

    Args:
        given: Its value, HOST:PORT or auto. With auto Ray looks for a cluster on this machine.

    Raises:
        ClusterError: It has another form, nothing answers there within the deadline, or no node runs here.
    """
    if given == "auto":
        return
    name = f"RAY_ADDRESS={given}"
    if given.startswith("ray://"):
        raise ClusterError(
            f"{name}: is an address of Ray Client, which runs no sweeps. Run this command on a node of the cluster "
            "with RAY_ADDRESS=auto, or submit it: ray job submit --address http://HOST:8265 --working-dir . -- "
            "python -m sweeps sweep FILE"
        )
    if given.startswith(("http://", "https://")):
        raise ClusterError(
            f"{name}: is an address for jobs. Submit this command: ray job submit --address {given} --working-dir . -- "
            "python -m sweeps sweep FILE. Or run it on a node of the cluster with RAY_ADDRESS=auto."
        )
    host, colon, port = given.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16) or "/" in given:
        raise ClusterError(f"{name}: is no address of a cluster. Give HOST:PORT, such as 10.0.0.5:6379, {_UNSET}.")
    fault = _no_answer(host.strip("[]"), int(port), deadline_s)
    if fault:
        raise ClusterError(f"{name}: {fault}. Start the cluster (ray start --head), correct the address, {_UNSET}.")
    if not _has_node():
        raise ClusterError(
            f"{name}: this machine is no node of that cluster. Run ray start --address={given} here first, run this "
            f"command on a node of it, {_UNSET}."
        )


def _no_answer(host: str, port: int, deadline_s: float) -> str:
    """The reason for which no Ray answers at an address; empty if one does."""
    try:
        with socket.create_connection((host, port), timeout=deadline_s / 2) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""  # Its first words are encrypted.
            connection.settimeout(deadline_s / 2)
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except socket.gaierror:
        return f"the host {host} is not known"
    except TimeoutError:
        return f"it does not answer within {deadline_s:.0f} s"
    except OSError as error:
        return f"it does not answer ({error.strerror or error})"
    is_ray = len(answer) > 3 and answer[3] == _SETTINGS_FRAME
    return "" if is_ray else "another program than Ray answers there"


def _has_node() -> bool:
    """Whether a process of Ray's nodes runs on this machine: a driver needs one beside it."""
    return any("raylet" in (process.info["name"] or "") for process in psutil.process_iter(["name"]))
