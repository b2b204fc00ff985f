"""uv installs what pip would, and pip does where uv cannot."""

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from install_packages import pip_settings, uv_environment

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "install_packages.py"
SMALL = ("--constraint", "constraints.txt", "zstandard", "python-dateutil")
"""Two packages, one of which brings a third."""


def packages_of(folder: Path, command: list[str], **environment: str) -> dict[str, str]:
    """The versions in a fresh environment after an installation."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run(
        [python, *command, *SMALL], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    found = {one["name"]: one["version"] for one in json.loads(listed.stdout)}
    return {name: version for name, version in found.items() if name not in ("pip", "setuptools", "uv")}


@pytest.mark.long
def test_uv_and_pip_install_the_same_packages_and_pip_helps_where_uv_fails(tmp_path: Path) -> None:
    by_pip = packages_of(tmp_path / "pip", ["-m", "pip", "install"])
    assert {"zstandard", "python-dateutil", "six"} <= by_pip.keys()
    assert packages_of(tmp_path / "uv", [str(SCRIPT)]) == by_pip
    # A setting that uv alone reads, and that it cannot use.
    assert packages_of(tmp_path / "no-uv", [str(SCRIPT)], UV_PYTHON_PREFERENCE="nonsense") == by_pip


def test_all_that_pip_is_configured_with_is_given_to_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://host/simple\ntrusted-host = host\nfind-links = /global\n"
        "[install]\nextra-index-url = https://a/simple\n  https://b/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    monkeypatch.setenv("PIP_CERT", "/certificate.pem")
    found = uv_environment(pip_settings())
    assert found["UV_DEFAULT_INDEX"] == "https://host/simple"
    assert found["UV_INDEX"] == "https://a/simple https://b/simple"
    assert found["UV_INSECURE_HOST"] == "host"
    assert found["UV_FIND_LINKS"] == "/one,/two", "the environment replaces the file"
    assert found["SSL_CERT_FILE"] == "/certificate.pem"
