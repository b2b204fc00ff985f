"""Renders chat templates in a process of its own, which `template_process.py` starts and its own limits end.

A template comes with a model or a tokenizer, maybe a stranger's. Jinja's sandbox keeps it from everything but text, and
one expression of it can still ask for any amount of memory or time. The limits are those of the kernel.
"""

import json
import math
import re
import resource
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2
"""Processor time that one conversation may take, and a second more for each megabyte or twenty turns of it."""
MEMORY_BYTES = 256 << 20
"""Memory that one conversation may take, and 32 times its own size more."""
RESULT_CHARACTERS = 1 << 20
"""Most characters of the result, and 16 times the size of the conversation more."""

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


def serve() -> None:
    """Answer requests, a line of JSON each, until the input ends.

    A request has the template's `source`, its `variables`, the `turns` (role and content), and `is_prompt`: whether the
    prompt for the next answer follows. The answer has the `text` and, unless it is a prompt, the `spans` of its
    answers; or a reason under `invalid` (the source), `refused` (the conversation) or `exceeded` (a limit).
    """
    _limit(resource.RLIMIT_CORE, 0)
    own_bytes = _address_space()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        seconds = SECONDS + (len(line) >> 20) + len(request["turns"]) // 20
        # Beyond these the kernel refuses memory, or ends the process.
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
        _limit(resource.RLIMIT_AS, own_bytes and own_bytes + MEMORY_BYTES + 32 * len(line))
        try:
            answer = _answer(request, most=RESULT_CHARACTERS + 16 * len(line))
        except MemoryError:
            answer = {"exceeded": "memory"}
        # The next request is read before its size is known.
        _limit(resource.RLIMIT_AS, None)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _address_space() -> int | None:
    """Bytes of this process without a request; None on macOS, which has neither /proc nor a limit of memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return None


def _limit(kind: int, value: int | None) -> None:
    """Set a limit of this process, at most to what the system allows; None: to that."""
    allowed = resource.getrlimit(kind)[1]
    if value is None or (allowed != resource.RLIM_INFINITY and value > allowed):
        value = allowed
    resource.setrlimit(kind, (value, allowed))


def _answer(request: dict[str, Any], *, most: int) -> dict[str, Any]:
    try:
        template = _compiled(request["source"])
    except MemoryError:
        raise
    except Exception as error:  # A template can raise anything.
        return {"invalid": _in_words(error)}

    def rendered(stop: int, *, is_prompt: bool) -> str:
        text = template.render(messages=messages[:stop], add_generation_prompt=is_prompt, **request["variables"])
        if len(text) > most:
            raise _TooLongError
        return text

    messages = [{"role": role, "content": content} for role, content in request["turns"]]
    try:
        whole = rendered(len(messages), is_prompt=request["is_prompt"])
        if request["is_prompt"]:
            return {"text": whole}
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = rendered(number, is_prompt=True), rendered(number + 1, is_prompt=False)
            if not (whole.startswith(after) and after.startswith(before)):
                return {"refused": f"it changes turn {number} when more turns follow, so answers cannot be located"}
            spans.append((len(before), len(after.rstrip())))
    except _TooLongError:
        return {"exceeded": "length"}
    except MemoryError:
        raise
    except Exception as error:
        return {"refused": _in_words(error)}
    return {"text": whole, "spans": spans}


class _TooLongError(Exception):
    """A text is longer than any conversation of this size needs."""


def _in_words(error: Exception) -> str:
    is_said = isinstance(error, jinja2.exceptions.TemplateError)
    return (str(error) if is_said else f"{type(error).__name__}: {error}")[:300]


@lru_cache(maxsize=4)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    # Only transformers defines this tag; replace it by an `if true`.
    plain = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source)
    return environment.from_string(plain)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateRuntimeError(message)
