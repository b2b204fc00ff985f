"""A report as Markdown: the record of an experiment, for a repository or a terminal."""

import re
from collections.abc import Iterator, Sequence

from data_pipeline.schema.terminal_text import visible
from sweeps.report.report_blocks import (
    Block,
    Bullets,
    Cell,
    Code,
    Facts,
    Failed,
    Long,
    Number,
    Paragraph,
    Picture,
    Section,
    Table,
)


def markdown_record(*, title: str, subtitle: str, summary: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole record as text. A picture is replaced by its caption.

    Names and texts of others add no heading, list, table, HTML, image or link, and no control character. A bare address
    stays as it is: it shows where it leads.
    """
    parts = [f"# {_one_line(title)}", _paragraph(subtitle), *map(_block, summary)]
    for section in sections:
        parts += [f"## {_one_line(section.title)}", *map(_block, section.blocks)]
    return visible("\n\n".join(part for part in parts if part), keep="\n\t") + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _paragraph(text)
        case Bullets(items):
            return "\n".join(f"- {_paragraph(_joined(item))}" for item in items)
        case Facts(rows):
            return "\n".join(f"- {_paragraph(_joined(f'{name}: {value}'))}" for name, value in rows)
        case Table():
            return "\n".join(_table(block))
        case Code(text, title) if title:
            return f"<details><summary>{_one_line(title)}</summary>\n\n{_block(Code(text))}\n\n</details>"
        case Code(text):
            return f"{_fence(text)}\n{text.rstrip()}\n{_fence(text)}"
        case Failed(name):
            return f"*{_one_line(name)}: not drawn*"
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
            return _cell(cell.gist)
        case _:
            # A backslash before a pipe would escape our own backslash.
            return _one_line(cell).replace("\\|", "&#92;|").replace("|", "\\|")


def _paragraph(text: str) -> str:
    """Lines none of which begins a heading, a list, a table, code, or the definition of a link."""
    lines = re.sub(r"(?m)^[ \t]+", "", _inline(text))
    lines = re.sub(r"(?m)^([#=+*>~|:\[_-]|`{3})", r"\\\1", lines)
    return re.sub(r"(?m)^(\d+)([.)])(?=\s|$)", r"\1\\\2", lines)


def _one_line(text: str) -> str:
    return _inline(_joined(text))


def _joined(text: str) -> str:
    return " ".join(text.split())


def _inline(text: str) -> str:
    # Links and images need `](`, or a definition, which begins a line. Emphasis does no harm.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
