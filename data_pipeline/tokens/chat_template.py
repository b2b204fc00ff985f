"""Chat templates: they write a conversation as one text, in training and in exported Hugging Face folders.

A template is a Jinja source, as in `chat_template.jinja`. The default is MiniMind's: each turn is `<s>role`, a line
feed, the content, `</s>`; a line feed separates turns. A model with its own template keeps that template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_pipeline.files.json_files import read_json, read_text
from data_pipeline.schema.rejects import Reason
from data_pipeline.tokens.template_process import InvalidTemplateError, TemplateError, TemplateFault, render
from data_pipeline.tokens.tokenizer import vocabulary_of

Turn = tuple[str, str]
"""Role (system, user or assistant) and content."""

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"

# The `generation` tag marks the predicted text, also for transformers (return_assistant_tokens_mask).
OURS = """\
{%- for message in messages -%}
{{- '' if loop.first else '\\n' -}}
{{- bos_token + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- (message['content'] | trim) + eos_token -}}
{%- endgeneration -%}
{%- else -%}
{{- (message['content'] | trim) + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '\\n' + bos_token + 'assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation written as one text."""

    text: str
    target_spans: list[tuple[int, int]]
    """(start, stop) in characters of each answer, end mark included."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the begin and end tokens of one tokenizer."""

    begin: str = "<s>"
    """Token that begins a text, `bos_token` in the source."""
    end: str = "</s>"
    """Token that ends a text, `eos_token` in the source."""
    source: str = OURS

    def dialogue(self, turns: Sequence[Turn]) -> Dialogue | Reason:
        """A whole conversation as text, or the reason for rejecting it.

        Args:
            turns: An optional system turn, then user and assistant alternate.
        """
        if any(mark in content for _, content in turns for mark in (self.begin, self.end)):
            return Reason.MARK_IN_TURN
        if self.source == OURS:
            return self._by_ours(turns)
        try:
            return self._rendered(turns)
        except TemplateError:
            return Reason.NOT_OF_TEMPLATE

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The conversation as text, up to the point where the next answer begins.

        Raises:
            TemplateError: The template refuses these turns.
        """
        if self.source == OURS:
            return f"{self._by_ours(turns).text}\n{self.begin}assistant\n"
        return self._rendered(turns, is_prompt=True).text

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids of the tokens that end an answer: the tokenizer's end token, and the template's own end mark."""
        found = self.dialogue([("user", "x"), ("assistant", "x")])
        marks = [self.end]
        if isinstance(found, Dialogue):
            start, stop = found.target_spans[-1]
            marks.append(found.text[start:stop].removeprefix("x").strip())
        ids = (tokenizer.token_to_id(mark) for mark in marks)
        return tuple(dict.fromkeys(number for number in ids if number is not None))

    def _by_ours(self, turns: Sequence[Turn]) -> Dialogue:
        """The result of rendering OURS, in Python: Jinja takes ten times as long."""
        text = ""
        spans = []
        for number, (role, content) in enumerate(turns):
            text += f"{'' if number == 0 else chr(10)}{self.begin}{role}\n"
            start = len(text)
            text += f"{content.strip()}{self.end}"
            if role == "assistant":
                spans.append((start, len(text)))
        return Dialogue(text, spans)

    def _rendered(self, turns: Sequence[Turn], *, is_prompt: bool = False) -> Dialogue:
        variables = {"bos_token": self.begin, "eos_token": self.end}
        return Dialogue(*render(self.source, turns, variables, is_prompt=is_prompt))


OUR_CHAT = ChatTemplate()


def template_beside(tokenizer_path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template in the folder of a tokenizer.json; the default template if there is none.

    Raises:
        ValueError: The template is not valid Jinja.
    """
    source = source_in(tokenizer_path.parent)
    return chat_with_marks(OURS if source is None else source, tokenizer)


def chat_with_marks(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """A template with the begin and end tokens of a tokenizer."""
    vocabulary = vocabulary_of(tokenizer)
    begin, end = (str(tokenizer.id_to_token(number)) for number in (vocabulary.bos_id, vocabulary.eos_id))
    return ChatTemplate(begin, end, source)


def source_in(folder: Path) -> str | None:
    """Jinja source of the template in a transformers folder; None if it has none.

    Raises:
        ValueError: The source is not valid Jinja, or asks for too much memory or time.
    """
    source: Any = None
    if (folder / TEMPLATE_FILE).is_file():
        source = read_text(folder / TEMPLATE_FILE)
    elif (folder / SETTINGS_FILE).is_file():
        settings = read_json(folder / SETTINGS_FILE)
        source = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(source, list):
        # Several named templates, for tool use for example.
        named = [one for one in source if isinstance(one, dict)]
        source = next((one.get("template") for one in named if one.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    if source != OURS:
        try:
            # A first conversation shows here, with the place, a template that asks for too much.
            ChatTemplate(source=source).prompt([("user", "x")])
        except InvalidTemplateError as cause:
            raise ValueError(
                f"the chat template in {folder} is not valid Jinja: {cause}; repair or remove {TEMPLATE_FILE}"
            ) from cause
        except TemplateFault as cause:
            raise TemplateFault(f"{folder}: {cause}") from cause
        except TemplateError:
            pass  # It wants other turns.
    return source
