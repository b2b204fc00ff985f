"""A report as Markdown: the record of an experiment, for a repository or a terminal."""

import re
from collections.abc import Iterator, Sequence

from sweeps.report.report_blocks import (
    Block,
    Bullets,
    Cell,
    Code,
    Facts,
    Long,
    Number,
    Paragraph,
    Picture,
    Section,
    Table,
)


def markdown_record(*, title: str, subtitle: str, summary: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole record as text. A picture is replaced by its caption."""
    parts = [f"# {_inline(title)}", _inline(subtitle), *map(_block, summary)]
    for section in sections:
        parts += [f"## {_inline(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _inline(text)
        case Bullets(items):
            return "\n".join(f"- {_one_line(item)}" for item in items)
        case Facts(rows):
            return "\n".join(f"- {_inline(name)}: {_one_line(value)}" for name, value in rows)
        case Table():
            return "\n".join(_table(block))
        case Code(text, title) if title:
            return f"<details><summary>{_inline(title)}</summary>\n\n{_block(Code(text))}\n\n</details>"
        case Code(text):
            return f"{_fence(text)}\n{text.rstrip()}\n{_fence(text)}"
        case Picture(_, caption):
            return f"*In report.html: {_one_line(caption)}*"


def _table(table: Table) -> Iterator[str]:
    yield _row([_cell(name) for name in table.columns])
    yield _row(["---:" if table.is_numeric(index) else "---" for index in range(len(table.columns))])
    for row in table.rows:
        yield _row([_cell(cell) for cell in row])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    match cell:
        case Number(_, text):
            return text
        case Long():
            return _one_line(cell.gist).replace("|", "\\|")
        case _:
            return _one_line(cell).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(_inline(text).split())


def _inline(text: str) -> str:
    # Markdown reads a name like <b> as HTML; its other marks do no harm.
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
