"""MLflow's own pages on a real sweep, opened in a browser as a user opens them."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Page, chromium, open_browser
from command import ROOT, press_ctrl_c, processes_marked, read_until, run, start
from mlflow_server import free_port

# A browser is not part of what a bare machine needs for `make test`.
pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCREENSHOTS = ROOT / "build" / "screenshots"
"""Kept as output of the test."""
SWEPT = {"training.learning_rate", "training.batch_size"}
FOUR = """\
name: compared
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}
objective: {masked_lm: {masking_rate: 0.15}}
search:
  training.learning_rate: {choice: [1e-3, 3e-3]}
  training.batch_size: {choice: [16, 32]}
searcher: {method: grid}
early_stopping: {method: none}
budget: {trials: 4, tokens_per_trial: 5k}
"""
AXES = "[...document.querySelectorAll('.parcoords .axis-title')].map(title => title.textContent)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses that `pretune ui` prints of a sweep of four trials, by what they show."""
    chromium()
    results = tmp_path_factory.mktemp("results")
    file = results / "compared.yaml"
    file.write_text(FOUR)
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    mark = f"compare-{time.time_ns()}"
    server = start("ui", "--results", results, "--port", str(free_port()), mark=mark)
    try:
        printed = read_until(server, "Ctrl-C ends the server")
        yield dict(re.findall(r"^(.*): (http://\S+)$", printed, re.MULTILINE))
        press_ctrl_c(server)
        server.communicate(timeout=60)
    finally:
        for running in processes_marked(mark):
            running.kill()


def test_the_compare_page_draws_the_swept_settings_on_parallel_coordinates(
    pages: dict[str, str], tmp_path: Path
) -> None:
    async def look(page: Page) -> list[str]:
        await page.open(pages["compared, compared"], until=f"{AXES}.length > {len(SWEPT)}")
        await page.screenshot(SCREENSHOTS / "compare.png")
        return list(await page.evaluate(AXES))

    axes = looked_at(look, tmp_path)
    # The last axis is a metric, which the page chooses.
    assert set(axes[:-1]) == SWEPT


def looked_at(look: Callable[[Page], Awaitable[Any]], tmp_path: Path) -> Any:
    """What a look at a page gives; no script of the page has failed by then."""

    async def in_a_browser() -> Any:
        async with open_browser(tmp_path / "profile") as page:
            found = await look(page)
            assert page.errors == []
            return found

    return asyncio.run(in_a_browser())
