"""The page of a report as an installed package writes it."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from browser import open_browser
from data_pipeline.schema.terminal_text import visible
from sweeps.finetuning.class_plots import confusion_picture
from sweeps.report.report_blocks import Block, Bullets, Code, Facts, Long, Paragraph, Picture, Section, Table, number
from sweeps.report.report_page import html_page

ROOT = Path(__file__).parents[3]


def page(*blocks: Block) -> str:
    """A page with one section."""
    return html_page(title="a", subtitle="b", summary=[], sections=[Section("c", blocks)])


def test_text_in_code_and_cells_keeps_its_spaces_and_lines() -> None:
    text = "  two\n\n    four {{ x }} {% y %}\n"
    html = page(Code(text), Table(["d"], [[Long(text + "last")], [" e "]]))
    assert f"<pre>{text}</pre>" in html
    assert f"<details><summary>last</summary><pre>{text}last</pre></details></td>" in html
    assert '<td class="short"> e </td>' in html


def test_backticks_mark_code_and_markup_inside_stays_text() -> None:
    assert "<p>run <code>&lt;b&gt;</code> &amp; wait</p>" in page(Paragraph("run `<b>` & wait"))


def test_a_number_is_shown_rounded_and_kept_exact() -> None:
    html = page(Table(["e_f"], [[number(1.23456789, ".2f", bar=0.5)], [""]]))
    assert '<th class="number">e_<wbr>f</th>' in html
    assert '<span class="bar" style="--share:0.5000"><data value="1.23456789">1.23</data></span>' in html


NASTY = [
    "<script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 1'>",
    '"><svg onload=window.owned=1>',
    "' style='background:url(http://evil.example)' x='",
    "</pre></td></title></style><iframe src=http://evil.example>",
    "`<b>` &lt;script&gt; {{ 7 * 7 }} {% raw %}",
    "]]><script>window.owned = 1</script><![CDATA[",
    "\x1b]0;owned\x07\u202e\udcff",
]


class Elements(HTMLParser):
    """Elements of a page with their attributes but for values that are texts, and all of its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("code", "tspan", "br"):  # Backticks mark code in every text.
            self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_with(name: str) -> str:
    """A page with one name in every place that a report has for a text."""
    confusion = confusion_picture(np.eye(2, dtype=np.int64), [name, "b"])
    blocks = [
        Paragraph(name),
        Bullets([name]),
        Facts([(name, name)]),
        Table([name, "b"], [[name, "c"], [Long(f"{name}\nlast {name}"), "d"], [Long(name), "e"]], name),
        Code(name),
        Code(name, name),
        Picture(confusion, name),
    ]
    return html_page(title=name, subtitle=name, summary=blocks, sections=[Section(name, blocks)])


@pytest.mark.parametrize("name", NASTY)
def test_a_name_adds_no_element_and_no_attribute_wherever_it_stands(name: str) -> None:
    nasty, plain = Elements(page_with(name)), Elements(page_with("a name that is as plain as a name can be"))
    assert nasty.found == plain.found
    assert nasty.text.count(visible(name).replace("`", "")) >= 8
    assert not re.search(visible("[\x1b\u202e]"), page_with(name))


POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


def test_the_policy_of_the_page_stands_before_everything_that_could_load() -> None:
    html = page(Paragraph("a"))
    (policy,) = POLICY.findall(html)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert html.index("Content-Security-Policy") < min(html.index(tag) for tag in ("<title", "<style", "<body"))


@pytest.mark.long
def test_a_browser_runs_no_script_and_loads_nothing_even_where_markup_got_through(tmp_path: Path) -> None:
    asked: list[str] = []

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Evil) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        markup = (
            f"<script>window.owned = 1</script><img src={at}/img onerror='window.owned = 1'><iframe src={at}/frame>"
            f"</iframe><link rel=stylesheet href={at}/css><svg onload='window.owned = 1'></svg>"
            f"<p style='color: rgb(1, 2, 3); background: url({at}/background)' id=styled>x</p>"
        )
        html = page(Paragraph("a"), Picture(markup, "b"))
        found = {}
        for name, content in (("kept", html), ("without", POLICY.sub("", html))):
            (tmp_path / f"{name}.html").write_text(content)
            found[name] = (*asyncio.run(_opened(tmp_path, name)), sorted(asked))
            asked.clear()
        server.shutdown()
    # Without the policy the same page would do it all: the test sees what it looks for.
    loads = ["/background", "/css", "/frame", "/img"]
    assert found == {"kept": (None, "rgb(1, 2, 3)", []), "without": (1, "rgb(1, 2, 3)", loads)}


async def _opened(folder: Path, name: str) -> tuple[Any, Any]:
    """The mark that scripts would leave, and the colour of an inline style, once the page has loaded."""
    async with open_browser(folder / f"profile-{name}") as tab:
        # `load` waits for images, frames and style sheets.
        await tab.open((folder / f"{name}.html").as_uri(), until="document.readyState == 'complete' && window.styled")
        colour = await tab.evaluate("getComputedStyle(window.styled).color")
        return await tab.evaluate("window.owned"), colour


@pytest.mark.long
def test_an_installed_package_writes_the_page_that_the_source_writes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in ("data_pipeline", "core", "sweeps"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    wheel = "import setuptools.build_meta as build; print(build.build_wheel('..'))"
    built = subprocess.run([sys.executable, "-c", wheel], cwd=source, check=True, capture_output=True, text=True)
    installed = tmp_path / "installed"
    # A wheel is a zip file; unpacked on the path it is what pip installs.
    shutil.unpack_archive(tmp_path / built.stdout.split()[-1], installed, "zip")
    write = (
        "from sweeps.report import report_page; from sweeps.report.report_blocks import Paragraph, Section\n"
        "print(report_page.__file__)\n"
        "print(report_page.html_page(title='a', subtitle='b', summary=[], sections=[Section('c', [Paragraph('d')])]))"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-c", write], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    origin, html = ran.stdout.split("\n", 1)
    assert Path(origin).is_relative_to(installed)
    assert html == page(Paragraph("d")) + "\n"
