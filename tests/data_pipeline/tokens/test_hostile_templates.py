"""Chat templates of strangers: none takes more memory or time than a limit, and normal ones are written as before."""

import json
import os
from pathlib import Path

import psutil
import pytest
from preparing import letter_tokenizer

from data_pipeline.schema.rejects import Reason
from data_pipeline.tokens.chat_template import OURS, ChatTemplate, Dialogue, source_in, template_beside
from data_pipeline.tokens.template_process import TemplateError, TemplateFault, render

_TURNS = [("user", "How are you?"), ("assistant", "Well.")]
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_MEMORY = {
    "a product of a text": "{{ 'x' * 10**9 }}",
    "a product in the source, which Jinja computes beforehand": "{% set a = 'x' * 3000000000 %}",
    "a wide format": "{{ '%1000000000d' | format(1) }}",
    "a wide column": "{{ 'x' | center(1000000000) }}",
    "a method of texts": "{{ 'x'.ljust(1000000000) }}",
    "a list": "{% set a = [0] * 10**9 %}",
    "doubling": "{% set n = namespace(a='xxxxxxxx') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
}


@pytest.mark.parametrize("source", _MEMORY.values(), ids=_MEMORY)
def test_a_template_that_asks_for_gigabytes_is_refused_with_its_place(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(TemplateFault, match=rf"^{tmp_path}: the chat template asks for more than 256 MiB of memory"):
        source_in(tmp_path)


def test_a_template_without_end_is_ended_and_the_next_one_is_rendered() -> None:
    # One operation of C, during which Python could handle no signal.
    source = "{{ 9 ** (9 ** 9) }}"
    with pytest.raises(TemplateFault, match="asks for more than 2 s of processor time"):
        ChatTemplate(source=source).prompt(_TURNS[:1])
    assert ChatTemplate(source="{{ messages[0]['content'] }}").prompt(_TURNS[:1]) == "How are you?"


def test_a_template_that_writes_a_book_for_a_word_is_refused() -> None:
    with pytest.raises(TemplateFault, match="asks for more than 1,048,576 characters"):
        ChatTemplate(source="{{ 'x' * 10**7 }}").prompt(_TURNS[:1])


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if %}", "{{ ''.__class__.__mro__[1].__subclasses__()"],
)
def test_a_source_that_is_no_template_is_refused_with_its_place(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ValueError, match=rf"in {tmp_path} is not valid Jinja: .*; repair or remove"):
        source_in(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].nothing.nothing }}",
    ],
)
def test_a_conversation_that_a_template_fails_on_is_rejected(source: str) -> None:
    assert ChatTemplate(source=source).dialogue(_TURNS) is Reason.NOT_OF_TEMPLATE


def test_a_template_that_grows_with_the_rows_alone_ends_the_reading_of_the_corpus() -> None:
    source = "{% if messages | length > 1 %}{{ 'x' * 10**9 }}{% endif %}"
    assert ChatTemplate(source=source).prompt(_TURNS[:1]) == ""
    with pytest.raises(TemplateFault, match=r"beside tokenizer\.json: repair it, or remove it"):
        ChatTemplate(source=source).dialogue(_TURNS)


def test_a_long_conversation_is_written_whole() -> None:
    content = "A line of some words.\n" * 500_000
    found = ChatTemplate(source=_CHATML).dialogue([("user", content), ("assistant", "Long.")])
    assert isinstance(found, Dialogue)
    assert content in found.text


def test_a_conversation_of_many_turns_is_written_whole() -> None:
    turns = _TURNS * 150
    found = ChatTemplate(source=_CHATML).dialogue(turns)
    assert isinstance(found, Dialogue)
    assert [found.text[start:stop] for start, stop in found.target_spans] == ["Well.<|im_end|>"] * 150


def test_texts_pass_to_the_process_and_back_unchanged() -> None:
    strange = "\ud800 \u2028 \r\n \x00 {{ 1 }} \U0001f600"
    assert render("{{ messages[0].content }}", [("user", strange)], {}, is_prompt=True) == (strange, [])


def test_our_own_template_gives_in_python_what_jinja_gives() -> None:
    turns = [("system", " Be brief. "), *_TURNS, ("user", "Good?"), ("assistant", " Yes.\n")]
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    assert ChatTemplate().dialogue(turns) == Dialogue(*render(OURS, turns, variables, is_prompt=False))
    assert ChatTemplate().prompt(turns[:4]) == render(OURS, turns[:4], variables, is_prompt=True)[0]


def test_one_process_renders_all_conversations_and_none_is_started_for_our_own_template() -> None:
    def children() -> set[int]:
        return {process.pid for process in psutil.Process(os.getpid()).children()}

    assert ChatTemplate(source=_CHATML).prompt(_TURNS[:1])
    before = children()
    for number in range(20):
        ChatTemplate(source=_CHATML).dialogue([("user", str(number)), ("assistant", "x")])
        ChatTemplate().prompt(_TURNS[:1])
    assert children() == before


def test_settings_of_a_tokenizer_that_are_no_object_or_nested_endlessly_give_an_error_with_the_file(
    tmp_path: Path,
) -> None:
    letter_tokenizer().save(str(tmp_path / "tokenizer.json"))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: JSON nested more than"):
        source_in(tmp_path)
    for empty in ([], {"chat_template": [1, {"name": "default"}]}, {"chat_template": 7}):
        settings.write_text(json.dumps(empty))
        assert template_beside(tmp_path / "tokenizer.json", letter_tokenizer()).source == OURS
    with settings.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(ValueError, match="is larger than 16 MiB"):
        source_in(tmp_path)


def test_a_refusal_of_a_template_is_said_in_its_words() -> None:
    with pytest.raises(TemplateError, match=r"^Roles must alternate$"):
        ChatTemplate(source="{{ raise_exception('Roles must alternate') }}").prompt(_TURNS[:1])
