"""The process that renders chat templates: started at the first template that is not ours, then used again."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.template_rendering import MEMORY_BYTES, RESULT_CHARACTERS, SECONDS

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from data_pipeline.tokens.template_rendering import serve; serve()"
)
_EXCEEDED = {
    "time": f"more than {SECONDS} s of processor time",
    "memory": f"more than {MEMORY_BYTES >> 20} MiB of memory",
    "length": f"more than {RESULT_CHARACTERS:,} characters",
}


class TemplateError(ValueError):
    """A template refuses a conversation."""


class InvalidTemplateError(TemplateError):
    """A source is not valid Jinja."""


class TemplateFault(InputFault):
    """A template asked for more time, memory or text than a conversation needs."""


def render(
    source: str, turns: Sequence[tuple[str, str]], variables: Mapping[str, str], *, is_prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The text that a template makes of a conversation, and the (start, stop) of its answers in it.

    An answer is the difference between the conversation up to its prompt and up to its end, without spaces at the end.

    Args:
        turns: Role and content of each.
        is_prompt: True: the text continues to the begin of the next answer, and the answers are not located.

    Raises:
        TemplateError: The template refuses the conversation, or changes the text of a turn when others follow.
        InvalidTemplateError: The source is not valid Jinja.
        TemplateFault: It asked for too much.
    """
    request = {"source": source, "turns": turns, "variables": variables, "is_prompt": is_prompt}
    answer = _process.ask(request)
    if "invalid" in answer:
        raise InvalidTemplateError(answer["invalid"])
    if "refused" in answer:
        raise TemplateError(answer["refused"])
    if "exceeded" in answer:
        raise TemplateFault(
            f"the chat template asks for {_EXCEEDED[answer['exceeded']]} to write one conversation; it is in "
            "chat_template.jinja, or chat_template in tokenizer_config.json, beside tokenizer.json: repair it, or "
            "remove it to use the default template"
        )
    return answer["text"], [(start, stop) for start, stop in answer.get("spans", ())]


class _TemplateProcess:
    """One process at a time; a new one after the kernel has ended the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._started_by = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if line.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            self._running = None
            status = process.wait()
            assert status < 0, f"the process that renders chat templates failed with exit code {status}"
            # The kernel ends it at the limit of processor time, and where a stack grows too large.
            return {"exceeded": "time" if status == -signal.SIGXCPU else "memory"}

    def _started(self) -> "subprocess.Popen[bytes]":
        # A forked process must not share the pipes of its parent.
        if self._running is None or self._started_by != os.getpid():
            root = str(Path(__file__).parents[2])
            self._running = subprocess.Popen(
                # -P: a module of the current folder must not take the place of one of ours.
                [sys.executable, "-P", "-c", _START, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the command; this process ends with its input.
                start_new_session=True,
            )
            self._started_by = os.getpid()
        return self._running


_process = _TemplateProcess()
