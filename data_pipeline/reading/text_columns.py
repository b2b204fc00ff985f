"""The column or key of a file that holds the text."""

TEXT_NAMES = ("text", "content", "text_a", "sentence", "document", "body", "article", "story", "passage", "payload")
TURN_NAMES = ("conversations", "messages", "conversation", "dialog")
ALPACA_NAMES = ("instruction", "output")


def choose_column(columns: tuple[str, ...], wanted: str | None, text_like: list[str]) -> tuple[str | None, str | None]:
    """The column that holds the text.

    Args:
        columns: All columns or keys of the file.
        wanted: corpus.text; None chooses by name.
        text_like: Columns whose values look like text.

    Returns:
        (column, None), or (None, the reason to refuse the file). `conversations` and `alpaca` stand for dialogues.
    """
    if wanted is not None:
        if columns.count(wanted) > 1:
            return None, f"it has {columns.count(wanted)} columns called {wanted!r}; rename all but one of them"
        if wanted in columns:
            return wanted, None
        if any(name in columns for name in TURN_NAMES) or set(ALPACA_NAMES) <= set(columns):
            return None, f"it holds conversations and no column {wanted!r}; for objective: sft remove corpus.text"
        return None, f"it has no column {wanted!r}; its columns are {', '.join(columns) or 'none'}"
    column, refused = _by_name(columns, text_like)
    return choose_column(columns, column, text_like) if column in columns else (column, refused)


def is_named_like_text(column: str) -> bool:
    """True for a name that a column of texts usually has."""
    return column.strip().lower() in {*TEXT_NAMES, *TURN_NAMES, "alpaca"}


def _by_name(columns: tuple[str, ...], text_like: list[str]) -> tuple[str | None, str | None]:
    for name in (*TEXT_NAMES[:1], *TURN_NAMES):
        if name in columns:
            return ("conversations" if name in TURN_NAMES else name), None
    if all(name in columns for name in ALPACA_NAMES):
        return "alpaca", None
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    for name in TEXT_NAMES:
        if name in lowered:
            return lowered[name], None
    if len(text_like) == 1:
        return text_like[0], None
    return None, f"the column of the text is ambiguous; set corpus.text to one of {', '.join(columns) or 'none'}"
