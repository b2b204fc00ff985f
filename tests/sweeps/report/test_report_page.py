"""The page of a report as an installed package writes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.report.report_blocks import Code, Facts, Long, Paragraph, Section, Table, number
from sweeps.report.report_page import html_page

ROOT = Path(__file__).parents[3]


def page(*blocks: Paragraph | Facts | Table | Code) -> str:
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
