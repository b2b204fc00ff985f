"""Installs into the environment of this Python: with uv, which is faster, else with pip.

uv is given all that pip is configured with, in files and in the environment, so both see the same packages. pip does
the work wherever uv cannot be had, or fails.

Usage: python .ci/install_packages.py [arguments of pip install]
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping

_PIP = (sys.executable, "-m", "pip")
_SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "no-index": ("UV_NO_INDEX", " "),
}
"""Setting of pip: the variable of uv, and the character between its values."""


def main(arguments: list[str]) -> int:
    """Install; the exit status of the installer that did it."""
    if _has_uv():
        environment = os.environ | uv_environment(pip_settings())
        uv = (sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *arguments)
        if subprocess.run(uv, env=environment, check=False).returncode == 0:
            return 0
        sys.stderr.write("uv could not install this; pip tries\n")
    return subprocess.run((*_PIP, "install", *arguments), check=False).returncode


def pip_settings() -> dict[str, str]:
    """What pip is configured with for an installation: a later source replaces an earlier one, the environment all."""
    shown = subprocess.run((*_PIP, "config", "list"), capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for sections in (("global",), ("install",), (":env:",)):
        for line in shown.splitlines():
            section, _, setting = line.partition(".")
            name, _, value = setting.partition("=")
            if section in sections:
                found[name] = str(ast.literal_eval(value))
    return found


def uv_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment in which uv installs as pip with these settings does."""
    found = {
        variable: separator.join(settings[name].split())
        for name, (variable, separator) in _SETTINGS.items()
        if settings.get(name)
    }
    # pip takes the best version of all indexes, and uv the first index that knows the package.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_LINK_MODE": "copy"} | found


def _has_uv() -> bool:
    """Whether uv is in the environment, after an attempt to install it."""
    install = (*_PIP, "install", "--quiet", "--constraint", "constraints.txt", "uv")
    return subprocess.run(install, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
