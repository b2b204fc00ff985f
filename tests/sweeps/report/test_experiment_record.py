"""EXPERIMENT.md as a Markdown reader shows it: words of others stay words."""

import re
from collections.abc import Iterator

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from data_pipeline.schema.terminal_text import visible
from sweeps.report.experiment_record import markdown_record
from sweeps.report.report_blocks import Block, Bullets, Code, Facts, Long, Paragraph, Section, Table

READER = MarkdownIt("commonmark").enable("table")

ATTACKS = [
    "![x](http://evil.example/pixel.png)",
    "[click](http://evil.example)",
    "[click](<http://evil.example>)",
    "<http://evil.example>",
    "<img src=http://evil.example onerror=alert(1)>",
    "&#60;b&#62;",
    "# heading",
    "   ## heading",
    "heading\n===",
    "heading\n---",
    "text\n# heading\n\n# heading",
    "text\r# heading",
    "1. list\n2) list",
    "- list\n+ list\n* list",
    "> quote",
    "    code",
    "\tcode",
    "```\nfence",
    "~~~\nfence",
    "| a | b |\n|---|---|\n| c | d |",
    "a | b\n:-- | ---\nc | d",
    "[x]: http://evil.example\n\n[x] and ![x] and [y][x]",
    "`code` [x](http://evil.example) `",
    "` ![x](http://evil.example) `",
    "\\](x) [x\\](http://evil.example)",
    "x \\| y \\\\| z",
    "___\n***\n",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\ \u202e",
]
PLACES: dict[str, object] = {
    "paragraph": lambda text: Paragraph(text),
    "paragraph with code": lambda text: Paragraph(f"a `{text}` b"),
    "bullet": lambda text: Bullets([text]),
    "fact": lambda text: Facts([(text, text)]),
    "table": lambda text: Table([text, "b"], [[text, "c"], [Long(text), "d"]]),
    "code": lambda text: Code(text),
    "folded code": lambda text: Code(text, "title"),
}


def tokens(block: Block, *, title: str = "title") -> Iterator[Token]:
    """Tokens of the record of one block, also those inside of lines."""
    record = markdown_record(title=title, subtitle=title, summary=[], sections=[Section(title, [block])])
    for token in READER.parse(record):
        yield token
        yield from token.children or ()


def shape(found: Iterator[Token]) -> list[str]:
    """Kinds of tokens that are more than running text."""
    text = {"text", "inline", "softbreak", "hardbreak", "code_inline", "paragraph_open", "paragraph_close"}
    return [token.type for token in found if token.type not in text | {"em_open", "em_close"}]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_words_of_others_have_the_shape_of_plain_words_wherever_they_stand(place: str, attack: str) -> None:
    make = PLACES[place]
    assert shape(tokens(make(attack), title=attack)) == shape(tokens(make("plain"), title="plain"))  # type: ignore[operator]


# Emphasis and code lose their marks, and a backslash before punctuation is lost.
@pytest.mark.parametrize("attack", [text for text in ATTACKS if not re.search(r"[`*_]|\\[]|]", text)])
def test_a_reader_sees_the_words_as_they_were_written(attack: str) -> None:
    *_, cell = (token for token in tokens(Table(["a"], [[attack]])) if token.type == "inline")
    assert "".join(token.content for token in cell.children or ()) == visible(" ".join(attack.split()))


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_record_holds_no_control_characters(attack: str) -> None:
    record = markdown_record(title=attack, subtitle="", summary=[Code(attack)], sections=[])
    assert record == visible(record, keep="\n\t")
