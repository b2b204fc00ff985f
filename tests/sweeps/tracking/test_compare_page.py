"""MLflow's own pages on a real sweep, opened in a browser as a user opens them."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from browser import Page, chromium, open_browser
from command import ROOT, press_ctrl_c, processes_marked, read_until, start
from finished_sweep import TinySweep
from mlflow_server import free_port
from patience import HANGS_AFTER_S
from sweeps.records.trial_records import LOSS
from sweeps.tracking.final_values import FINAL_LOSS
from sweeps.tracking.mlflow_store import EXPERIMENT

pytestmark = pytest.mark.ray

SCREENSHOTS = ROOT / "build" / "screenshots"
"""Kept as output of the test."""
SWEPT = {"training.learning_rate", "training.batch_size", "training.micro_batch_size"}
AXES = "[...document.querySelectorAll('.parcoords .axis-title')].map(title => title.textContent)"
ROWS = """[...document.querySelectorAll('.ag-center-cols-container .ag-row, .ag-pinned-left-cols-container .ag-row')]
    .filter(row => row.querySelector('a')).sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))"""
NAMES = f"{ROWS}.map(row => row.querySelector('a').textContent)"
EXPANDER = f"{ROWS}.map(row => row.querySelector('button:has(svg)')).find(button => button)"


@pytest.fixture(scope="module")
def pages(tiny_sweep: TinySweep) -> Iterator[dict[str, str]]:
    """Addresses that `pretune ui` prints of a sweep, by what they show."""
    chromium()
    mark = f"compare-{time.time_ns()}"
    server = start("ui", "--results", tiny_sweep.store, "--port", str(free_port()), mark=mark)
    try:
        printed = read_until(server, "Ctrl-C ends the server")
        yield dict(re.findall(r"^(.*): (http://\S+)$", printed, re.MULTILINE))
        press_ctrl_c(server)
        server.communicate(timeout=HANGS_AFTER_S)
    finally:
        for running in processes_marked(mark):
            running.kill()


def trials(tiny_sweep: TinySweep) -> set[str]:
    client = MlflowClient(f"sqlite:///{tiny_sweep.store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`pretune.kind` = 'trial'")
    return {run.info.run_name for run in runs}


def test_trials_are_nested_under_their_sweep(pages: dict[str, str], tiny_sweep: TinySweep, tmp_path: Path) -> None:
    async def look(page: Page) -> tuple[list[str], list[str]]:
        await page.open(pages["all sweeps"], until=EXPANDER)
        closed = await page.evaluate(NAMES)
        await page.evaluate(f"{EXPANDER}.click()")
        await page.wait(f"{NAMES}.length > 1")
        await page.screenshot(SCREENSHOTS / "nested.png")
        return closed, await page.evaluate(NAMES)

    closed, (parent, *children) = looked_at(look, tmp_path)
    assert closed == ["tiny"]
    assert parent == "tiny"
    assert len(children) == 7
    assert set(children) == trials(tiny_sweep)


def test_the_charts_show_the_settings_beside_the_final_loss_and_losses_over_tokens(
    pages: dict[str, str], tmp_path: Path
) -> None:
    # A long name is cut in the middle, and stands whole in what appears under the mouse.
    labels = """[...document.querySelectorAll('.parcoords .dimension')].map(
        axis => (axis.querySelector('.axis-label-tooltip text') ?? axis.querySelector('.label'))?.textContent)"""

    async def look(page: Page) -> tuple[list[str], str]:
        await page.open(pages["tiny, charts"], until=f"{labels}.length > {len(SWEPT)}")
        await page.screenshot(SCREENSHOTS / "charts.png")
        return await page.evaluate(labels), await page.evaluate("document.body.innerText")

    axes, text = looked_at(look, tmp_path)
    assert set(axes) == SWEPT | {FINAL_LOSS}
    assert text.index("Sweep, over tokens") < text.index(LOSS)


def test_the_compare_page_draws_the_swept_settings_on_parallel_coordinates(
    pages: dict[str, str], tmp_path: Path
) -> None:
    async def look(page: Page) -> list[str]:
        await page.open(pages["tiny, compared"], until=f"{AXES}.length > {len(SWEPT)}")
        await page.screenshot(SCREENSHOTS / "compare.png")
        return list(await page.evaluate(AXES))

    *settings, metric = looked_at(look, tmp_path)
    assert set(settings) == SWEPT
    # The page takes the metric that the first run has had longest.
    assert metric.endswith("loss_nats_per_token")


def looked_at(look: Callable[[Page], Awaitable[Any]], tmp_path: Path) -> Any:
    """What a look at a page gives; no script of the page has failed by then."""

    async def in_a_browser() -> Any:
        async with open_browser(tmp_path / "profile") as page:
            found = await look(page)
            assert page.errors == []
            return found

    return asyncio.run(in_a_browser())
