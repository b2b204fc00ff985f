"""A report as one HTML page: no script, no network, opens from disk, light and dark."""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from data_pipeline.schema.terminal_text import visible
from sweeps.report.report_blocks import Block, Cell, Section

_PACKAGE = "sweeps.report"


def html_page(*, title: str, subtitle: str, summary: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole page as text. The template escapes every text; only `Picture.svg` enters as it is.

    Control characters are shown as escapes, and the page's own policy forbids scripts and loads in any case.
    """
    # A style sheet in the page, not beside it: one file can be mailed, and opens from disk.
    style = Markup(files(_PACKAGE).joinpath("report_page.css").read_text(encoding="utf-8"))
    page = _template().render(title=title, subtitle=subtitle, summary=summary, sections=sections, style=style)
    return visible(page, keep="\n\t")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"inline": _inline, "kind": _kind}
    return environment.get_template("report_page.html.jinja")


def _inline(text: str) -> Markup:
    """Escaped text in which backticks mark code and line feeds break lines."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))).replace("\n", "<br>"))


def _kind(part: Block | Cell) -> str:
    """The class of a block or cell, which a template cannot ask for."""
    return type(part).__name__
