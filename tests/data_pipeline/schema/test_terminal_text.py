"""Characters that act on a terminal, shown instead of obeyed."""

import io
import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.schema.terminal_text import echo, json_line, visible

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ANY_TEXT = st.text(st.characters() | st.sampled_from("\x1b\x9b\r\b\x7f\n\t" + BIDI + "\udcff\U000e0041"))


def test_every_control_character_override_and_surrogate_is_shown_as_an_escape() -> None:
    acting = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp")]
    for character in (*acting, *BIDI, "\U000e0001"):
        assert visible(character).startswith("\\")
        assert visible(character).isprintable()


def test_letters_of_all_scripts_spaces_and_joined_emoji_stay() -> None:
    for text in ("naïve 中文 עברית العربية हिन्दी", "a\u00a0b", "👩\u200d🔬", r"C:\x1b", "\u200e"):
        assert visible(text) == text


@given(ANY_TEXT)
def test_an_escaped_text_is_not_escaped_again(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@given(st.dictionaries(ANY_TEXT, ANY_TEXT | st.lists(ANY_TEXT)))
def test_a_line_of_json_has_no_acting_character_and_reads_back_as_the_same_value(value: dict[str, object]) -> None:
    assert visible(json_line(value)) == json_line(value)
    assert json.loads(json_line(value)) == value


def test_echo_lets_lines_and_tabs_be_and_nothing_else() -> None:
    printed = io.StringIO()
    echo("one\n\ttwo\r\x1b]8;;http://x\x1b\\three", end="", file=printed)
    assert printed.getvalue() == "one\n\ttwo\\r\\x1b]8;;http://x\\x1b\\three"
