"""Built-in corpus that needs no file: the English documentation inside every CPython installation."""

import ast
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from data_pipeline.files.whole_files import write_whole

# Tests and vendored packages repeat each other; the remaining docstrings are prose.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_vendor", "lib2to3"}
_SHORTEST_DOCSTRING = 40


@lru_cache(maxsize=1)
def builtin_bytes(name: str) -> bytes:
    """A built-in corpus as the bytes of a JSONL file with rows {"text": ...}.

    Collecting it takes seconds, so the result is cached per user and Python version under $XDG_CACHE_HOME.

    Raises:
        ValueError: No built-in corpus has this name.
    """
    if name != "python-docs":
        raise ValueError(f"there is no built-in corpus {name!r}; the only one is python-docs")
    version = ".".join(str(part) for part in sys.version_info[:3])
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        / "pretune"
        / f"python-docs-{version}.jsonl"
    )
    with suppress(OSError):
        return cache.read_bytes()
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in python_docs()]
    data = ("\n".join(rows) + "\n").encode("utf-8", "replace")
    with suppress(OSError):  # Without a writable home the corpus is collected again next time.
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, data)
    return data


def python_docs() -> Iterator[str]:
    """The topics of `pydoc_data`, then every docstring of the standard library that is long enough, once each."""
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        yield topic.strip()
    seen = set()
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(folder).parts) and path.name != "topics.py":
            for docstring in _docstrings(path):
                if docstring not in seen:
                    seen.add(docstring)
                    yield docstring


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None and len(docstring) >= _SHORTEST_DOCSTRING:
                yield docstring
