"""Read every kind of file in a process in which nothing can run code: `python disarmed_process.py FOLDER`.

It prints a JSON object: what came of each way to run code, of each honest file, and of each trap. Everything is
imported, and every honest file is read once, before the process is disarmed.
"""

import builtins
import io
import json
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy
import pandas
import ray.cloudpickle
import ray.data  # Registers the extension type that unpickles.
import torch
import transformers  # noqa: F401  # As a process that serves models has it.
from canaries import Canary
from kinds_of_files import KINDS, honest, traps_of

from data_pipeline.schema.user_errors import InputFault

EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen")
"""Events of Python's audit: they come however a function was reached, also by a name that was bound before."""
MAY_EXECUTE = ("importlib", "jinja2/environment.py")
"""Code of installed modules, and the templates of jinja2's sandbox, which is how a chat template is read."""


class RanCodeError(BaseException):
    """Something would have run code. No `except Exception` hides it."""


bound_before = pickle.loads
WAYS: dict[str, Callable[[bytes], object]] = {
    "pickle.loads": lambda data: pickle.loads(data),
    "pickle.loads bound before": lambda data: bound_before(data),
    "pickle.Unpickler": lambda data: pickle.Unpickler(io.BytesIO(data)).load(),
    "cloudpickle.loads": lambda data: ray.cloudpickle.loads(data),
    "torch.load": lambda data: torch.load(io.BytesIO(data), weights_only=False),
    "pandas.read_pickle": lambda data: pandas.read_pickle(io.BytesIO(data)),
    "numpy.load": lambda data: numpy.load(io.BytesIO(data), allow_pickle=True),
    "os.system": lambda _: os.system("true"),
    "subprocess.run": lambda _: subprocess.run(["true"], check=True),
    "subprocess.Popen": lambda _: subprocess.Popen(["true"]),
    "eval": lambda _: eval("1"),
    "exec": lambda _: exec("1"),
}
"""Ways to run code of a file, none of which works in the disarmed process."""


def disarm() -> None:
    """Let everything raise that could run code of a file."""

    def refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*_: object, **__: object) -> NoReturn:
            raise RanCodeError(name)

        return refused

    for module in (pickle, ray.cloudpickle):
        for name in ("load", "loads", "Unpickler"):
            setattr(module, name, refuse(f"{module.__name__}.{name}"))
    for module, names in ((os, ("system", "popen")), (subprocess, ("run", "call", "check_call", "check_output"))):
        for name in names:
            setattr(module, name, refuse(f"{module.__name__}.{name}"))
    torch.load = refuse("torch.load")
    for name in ("eval", "exec"):
        setattr(builtins, name, only_for_installed_code(getattr(builtins, name)))
    sys.addaudithook(audit)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(EVENTS):
        raise RanCodeError(f"{event}{arguments}")


def only_for_installed_code(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(code: str | bytes | types.CodeType, *arguments: Any, **named: Any) -> Any:
        caller = sys._getframe(1).f_code.co_filename
        if not any(part in caller for part in MAY_EXECUTE):
            raise RanCodeError(f"{function.__name__} by {caller}")
        return function(code, *arguments, **named)

    return checked


def outcome(read: Callable[[], object]) -> str:
    try:
        read()
    except InputFault as fault:
        return f"fault: {fault}"
    except (ValueError, OSError) as error:
        return f"error: {type(error).__name__}: {error}"
    except Exception as error:
        return f"another error: {type(error).__name__}: {error}"
    except RanCodeError as ran:
        return f"RAN CODE: {ran}"
    return "read"


def main(root: Path) -> None:
    torch.set_num_threads(1)
    cases: dict[str, Path] = {}
    for name, kind in KINDS.items():
        cases[name] = honest(kind, root / name / "honest")
        kind.read(cases[name])
        for trap, plant in traps_of(kind).items():
            fired = root / f"{len(cases)}.fired"
            folder = cases[f"{name}: {trap}"] = honest(kind, root / name / str(len(cases)))
            plant(folder, Canary(fired))
    assert not list(root.glob("*.fired"))
    disarm()
    pickled = Canary(root / "way.fired").pickled()
    ways = {name: outcome(partial(way, pickled)) for name, way in WAYS.items()}
    files = {name: outcome(partial(KINDS[name.split(":")[0]].read, folder)) for name, folder in cases.items()}
    print(json.dumps({"ways": ways, "files": files, "fired": [path.name for path in root.glob("*.fired")]}), flush=True)
    os._exit(0)  # Libraries that clean up behind themselves may run code of their own.


if __name__ == "__main__":
    main(Path(sys.argv[1]))
