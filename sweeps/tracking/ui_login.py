"""The login of MLflow's pages: MLflow's basic authentication with one user, for as long as the pages are served."""

import getpass
import importlib.util
import ipaddress
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.records.results_folder import ResultsError

USER = "MLFLOW_AUTH_ADMIN_USERNAME"
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"

_MIN_CHARACTERS = 12
"""MLflow takes no shorter password."""
_SETTINGS = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{users}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def is_open_to_others(host: str) -> bool:
    """Whether a server at this address can be reached from other machines."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


@contextmanager
def login() -> Iterator[dict[str, str]]:
    """Environment variables with which MLflow's server asks for a name and a password, valid during the block.

    The name is $MLFLOW_AUTH_ADMIN_USERNAME, or admin. The password is $MLFLOW_AUTH_ADMIN_PASSWORD, or asked for at a
    terminal. $MLFLOW_AUTH_CONFIG_PATH may name a file with other users.

    Raises:
        ResultsError: A package is missing, or the password; the message names all that is missing.
    """
    password = os.environ.get(PASSWORD) or (getpass.getpass("password: ") if sys.stdin.isatty() else "")
    faults = []
    if importlib.util.find_spec("flask_wtf") is None:
        faults.append("MLflow's login needs Flask-WTF; install it with: pip install 'mlflow[auth]'")
    if len(password) < _MIN_CHARACTERS:
        faults.append(
            f"the password has {len(password)} characters; set {PASSWORD} to {_MIN_CHARACTERS} or more, or type as many"
        )
    if faults:
        raise ResultsError("--login: " + "; ".join(faults))
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "login.ini"
        settings.write_text(_SETTINGS.format(users=Path(folder) / "users.db"), encoding="utf-8")
        yield {
            "MLFLOW_AUTH_CONFIG_PATH": os.environ.get("MLFLOW_AUTH_CONFIG_PATH", str(settings)),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            PASSWORD: password,
        }
