"""Arguments of a command as `ps` shows them."""

import json
import subprocess
import sys

from command import ROOT
from patience import HANGS_AFTER_S

SCRIPT = """
import json, os, sys
import psutil
from sweeps.commands.hidden_arguments import hide_secret_arguments
hide_secret_arguments()
print(json.dumps({"given": sys.argv[1:], "shown": psutil.Process().cmdline(), "inherited": str(dict(os.environ))}))
"""


def arguments_of(*arguments: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANGS_AFTER_S
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_secret_in_an_argument_reaches_the_command_and_neither_ps_nor_children() -> None:
    given = ["plan", "a.yaml", "--set", "corpus.path=https://h/x?file=a&token=CANARY", "--set", "purpose=two words"]
    seen = arguments_of(*given)
    assert seen["given"] == given
    assert seen["shown"][-len(given) :] == [*given[:3], "corpus.path=https://h/x?file=a&token=***", *given[4:]]
    assert "CANARY" not in str(seen["shown"]) + str(seen["inherited"])


def test_arguments_without_a_secret_stay_as_they_are() -> None:
    given = ["plan", "--set", "corpus.path=s3://bucket/x?region=eu-1"]
    seen = arguments_of(*given)
    assert seen["given"] == given
    assert seen["shown"] == [sys.executable, "-c", SCRIPT, *given]
