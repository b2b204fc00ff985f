"""A report as one HTML page: no script, no network, opens from disk, light and dark."""

import re
from collections.abc import Iterator, Sequence
from html import escape

from sweeps.records.outcomes import Outcome
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

_SHORT = 24
"""Characters up to which the text of a table cell stays on one line."""


def html_page(*, title: str, subtitle: str, summary: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole page as text; every word of a user is escaped."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a> ' for section in sections)
    body = "\n".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n{_blocks(section.blocks)}\n</section>'
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{_inline(subtitle)}</p></header>\n'
        f'<div class="summary">\n{_blocks(summary)}\n</div>\n<nav>{links}</nav>\n{body}\n</main></body></html>\n'
    )


def _blocks(blocks: Sequence[Block]) -> str:
    return "\n".join(_block(block) for block in blocks)


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
        case Facts(rows):
            facts = "".join(f"<dt>{escape(name)}</dt><dd>{_inline(value)}</dd>" for name, value in rows)
            return f"<dl>{facts}</dl>"
        case Table():
            return "".join(_table(block))
        case Code(text, ""):
            return f"<pre>{escape(text)}</pre>"
        case Code(text, title):
            return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
        case Picture(svg, caption):
            return f'<figure><div class="picture">{svg}</div><figcaption>{_inline(caption)}</figcaption></figure>'


def _table(table: Table) -> Iterator[str]:
    sides = ["number" if table.is_numeric(index) else "" for index in range(len(table.columns))]
    yield f'<div class="wide"><table data-name="{escape(table.name)}"><thead><tr>'
    for name, side in zip(table.columns, sides, strict=True):
        in_class = f' class="{side}"' if side else ""
        yield f"<th{in_class}>{escape(name).replace('_', '_<wbr>')}</th>"
    yield "</tr></thead>\n<tbody>"
    for row in table.rows:
        yield "<tr>"
        for cell, side in zip(row, sides, strict=True):
            words = "short" if isinstance(cell, str) and len(cell) < _SHORT else "long"
            yield f'<td class="{side or words}">{_cell(cell)}</td>'
        yield "</tr>\n"
    yield "</tbody></table></div>"


def _cell(cell: Cell) -> str:
    match cell:
        case Number(value, text, bar):
            # The whole number rides along, so that a program that reads the page gets what trials.csv says.
            shown = f'<data value="{value!r}">{escape(text)}</data>'
            return shown if bar is None else f'<span class="bar" style="--share:{bar:.4f}">{shown}</span>'
        case Long() if cell.has_more:
            return f"<details><summary>{escape(cell.gist)}</summary><pre>{escape(cell.text)}</pre></details>"
        case Long():
            return _inline(cell.text)
        case Outcome():
            return f'<span class="outcome {cell.lower()}">{escape(cell)}</span>'
        case _:
            return escape(cell)


def _inline(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text)).replace("\n", "<br>")


_STYLE = """
:root { color-scheme: light dark;
  --page: #fdfdfc; --ink: #1f2328; --muted: #626a73; --line: #dfe2e6; --box: #f3f5f7; --bar: #d5e4f3;
  --plot-0: #2468ae; --plot-1: #c4560e; --plot-2: #2a7f4f; --plot-3: #8b4fb0; --plot-4: #a3821a; --plot-5: #b0344a;
  --completed: #2a7f4f; --stopped: #3d7593; --infeasible: #9a6a00; --diverged: #8b4fb0; --interrupted: #6b7280;
  --failed: #b3261e; --running: #2468ae; --faint: #c3c8cf; }
@media (prefers-color-scheme: dark) { :root {
  --page: #16191d; --ink: #e3e6ea; --muted: #98a1ab; --line: #333a42; --box: #1e2329; --bar: #25425f;
  --plot-0: #6fb1f0; --plot-1: #f0965a; --plot-2: #6cc795; --plot-3: #c39be3; --plot-4: #d9ba55; --plot-5: #f08a9b;
  --completed: #6cc795; --stopped: #7fb8d6; --infeasible: #e0b04a; --diverged: #c39be3; --interrupted: #9aa3ad;
  --failed: #f28b82; --running: #6fb1f0; --faint: #4a525b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p, ul { max-width: 50rem; margin: .6rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; } li { margin: .35rem 0; }
.subtitle, figcaption { color: var(--muted); } .subtitle { margin: .35rem 0 1.5rem; }
.summary { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1.25rem; }
nav { margin: 1.1rem 0 0; font-size: .87rem; line-height: 2; } nav a { margin-right: .9rem; white-space: nowrap; }
a { color: var(--plot-0); text-decoration: none; } a:hover { text-decoration: underline; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.4rem; margin: .6rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); vertical-align: bottom; line-height: 1.3; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
td { vertical-align: top; } .number { text-align: right; } td.number, td.short { white-space: nowrap; }
td.long { min-width: 14rem; }
.outcome { font-size: .76rem; font-weight: 600; letter-spacing: .02em; }
.completed { color: var(--completed); } .stopped { color: var(--stopped); } .infeasible { color: var(--infeasible); }
.diverged { color: var(--diverged); } .interrupted { color: var(--interrupted); } .failed { color: var(--failed); }
.bar { display: inline-block; min-width: 9rem; padding: 0 .35rem; border-radius: 3px; text-align: left;
  background: linear-gradient(to right, var(--bar) calc(var(--share) * 100%), transparent 0); }
code, pre { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
code { background: var(--box); padding: .1em .3em; border-radius: 3px; }
.summary code { background: none; padding: 0; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .5rem 0; } td details { margin: 0; } summary { cursor: pointer; }
td pre { max-width: 60rem; }
figure { margin: 1.1rem 0 1.6rem; } .picture { overflow-x: auto; } figcaption { font-size: .87rem; max-width: 50rem; }
svg { display: block; max-width: 100%; height: auto; } svg text { font-family: inherit !important; }
@media (max-width: 48rem) { main { padding: 1.5rem 1rem 3rem; } svg { max-width: none; zoom: .7; }
  dl { grid-template-columns: minmax(0, 1fr); } dd { margin-bottom: .4rem; } }
@media print { main { max-width: none; padding: 0; } nav { display: none; } section { break-inside: auto; } }
"""
