import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swept_folder import LIMIT_BYTES, example_records, example_sweep, predicted_bytes, refuse_some, write_frontier

from data_pipeline.schema.settings import format_bytes
from sweeps.analysis.sweep_findings import Findings, gather
from sweeps.analysis.trial_curves import TRAIN_LOSS, read_curves
from sweeps.figures.cost_plots import memory_prediction_plot, micro_batch_plot, time_plot, timeline
from sweeps.figures.frontier_plot import frontier_plot
from sweeps.figures.loss_plots import loss_curves, parameter_plots
from sweeps.memory_knowledge.frontier_map import map_frontier
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore

Plot = Callable[[Findings], str | None]
PLOTS: tuple[Plot, ...] = (
    loss_curves,
    parameter_plots,
    micro_batch_plot,
    memory_prediction_plot,
    frontier_plot,
    time_plot,
    timeline,
)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("results")
    store = TrialStore(folder / "trials")
    records = example_records(store)
    refuse_some(store)
    write_frontier(folder, records)
    return gather(folder, example_sweep(), records, {})


def completed(number: int, loss: float = 4.0, **settings: Any) -> TrialRecord:
    return TrialRecord(number=number, settings=settings, outcome=Outcome.COMPLETED, metrics={LOSS: loss})


@pytest.mark.parametrize("plot", PLOTS)
def test_sweep_without_trials_has_no_pictures(plot: Plot, tmp_path: Path) -> None:
    assert plot(gather(tmp_path, example_sweep(), [], {})) is None


@pytest.mark.parametrize("plot", PLOTS)
def test_trial_that_never_reported_breaks_no_picture(plot: Plot, tmp_path: Path) -> None:
    silent = TrialRecord(number=1, settings={}, outcome=Outcome.FAILED, reason="x")
    assert plot(gather(tmp_path, example_sweep(), [silent], {})) is None


@pytest.mark.parametrize("plot", PLOTS)
def test_same_findings_make_the_same_picture(plot: Plot, findings: Findings) -> None:
    first = plot(findings)
    assert first is not None
    assert first.startswith("<svg ")
    assert plot(findings) == first


def test_leading_five_are_named_beside_the_curves(findings: Findings) -> None:
    svg = loss_curves(findings)
    assert svg is not None
    named = [record.name for record in findings.records if f">{record.name}<" in svg]
    assert named == [record.name for record in findings.completed[:5]]


def test_seeds_of_one_setting_have_a_band_around_their_train_and_holdout_losses(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    records = [completed(n, 4.0 + 0.1 * n, **{"training.seed": n}) for n in range(2)]
    for record in records:
        for tokens in (1e5, 2e5, 4e5):
            loss = 6 - tokens / 2e5 + 0.1 * record.number
            store.append_report(record, {"tokens": tokens, "step": tokens, LOSS: loss, TRAIN_LOSS: loss + 0.5})
    with_bands = loss_curves(gather(tmp_path, example_sweep(), records, {}))
    apart = [records[0], completed(1, 4.1, **{"training.learning_rate": 2e-3})]
    without = loss_curves(gather(tmp_path, example_sweep(), apart, {}))
    assert with_bands is not None
    assert without is not None
    # One in each of the three panels: train, holdout, and the end of holdout.
    assert (with_bands.count("FillBetweenPolyCollection"), without.count("FillBetweenPolyCollection")) == (3, 0)


def test_setting_swept_logarithmically_has_a_logarithmic_axis(findings: Findings) -> None:
    svg = parameter_plots(findings)
    assert svg is not None
    assert all(f">{tick}<" in svg for tick in ("0.0001", "0.001", "0.01", "32", "64", "128"))


def test_a_value_outside_the_range_lies_on_the_axis_of_numbers_as_well(tmp_path: Path) -> None:
    rates = [1.26e-4, 3.7e-4, 1e-3, 2.9e-3]
    records = [completed(n, 4.0 + n / 10, **{"training.learning_rate": rate}) for n, rate in enumerate(rates, start=1)]
    sweep = example_sweep(search={"training.learning_rate": {"log_uniform": [3e-4, 3e-3]}}, start_with=[])
    svg = parameter_plots(gather(tmp_path, sweep, records, {}))
    assert svg is not None
    assert ">0.001<" in svg
    assert "0.000126" not in svg


def test_names_with_dollars_and_angles_are_drawn_as_they_are(tmp_path: Path) -> None:
    values = ["$x^$", "a<b & $y$"]
    records = [completed(n, 4.0 + n, **{"training.initial_weights": value}) for n, value in enumerate(values, start=1)]
    sweep = example_sweep(search={"training.initial_weights": {"choice": values}}, start_with=[])
    svg = parameter_plots(gather(tmp_path, sweep, records, {}))
    assert svg is not None
    assert ">$x^$<" in svg
    assert ">a&lt;b &amp; $y$<" in svg


@pytest.mark.parametrize("count", [1, 4, 5])
def test_every_swept_setting_has_its_own_plot(count: int, tmp_path: Path) -> None:
    paths = [f"training.setting_{index}" for index in range(count)]
    records = [completed(n, 4.0 + n, **dict.fromkeys(paths, n / 10)) for n in (1, 2)]
    sweep = example_sweep(search={path: {"uniform": [0, 1]} for path in paths}, start_with=[])
    svg = parameter_plots(gather(tmp_path, sweep, records, {}))
    assert svg is not None
    assert all(f">setting_{index}<" in svg for index in range(count))


def test_equal_losses_make_a_picture(tmp_path: Path) -> None:
    records = [completed(n, 4.0, **{"training.learning_rate": 1e-3}) for n in (1, 2, 3)]
    assert parameter_plots(gather(tmp_path, example_sweep(), records, {})) is not None


def test_limit_of_memory_is_a_line_where_it_is_known(findings: Findings) -> None:
    svg = micro_batch_plot(findings)
    assert svg is not None
    assert ">limit<" in svg
    assert ">did not fit (predicted)<" in svg


def test_frontier_counts_what_ran_what_ran_out_and_what_was_refused(findings: Findings) -> None:
    svg = frontier_plot(findings)
    assert svg is not None
    assert ">ran (14)<" in svg
    assert ">ran out of memory (4)<" in svg
    assert ">refused by prediction (2)<" in svg
    assert ">masking rate<" in svg


def test_frontier_of_a_survived_out_of_memory_has_both_its_micro_batches(tmp_path: Path) -> None:
    settings = {"training.micro_batch_size": 64, "training.batch_size": 128}
    survived = completed(1, **settings).model_copy(
        update={"tokens": 10, "micro_batch_size_used": 32, "out_of_memory_micro_batches": (64, 48)}
    )
    write_frontier(tmp_path, [survived])
    svg = frontier_plot(gather(tmp_path, example_sweep(), [survived], {}))
    assert svg is not None
    assert ">ran (1)<" in svg
    assert ">ran out of memory (2)<" in svg


def test_the_frontier_drawn_is_that_of_the_learnt_capacity(tmp_path: Path) -> None:
    settings = {"training.micro_batch_size": 32, "training.batch_size": 128, "objective.masked_lm.masking_rate": 0.25}
    ran_out = completed(1, **settings).model_copy(
        update={"outcome": Outcome.INFEASIBLE, "out_of_memory_micro_batches": (32,)}
    )
    found = write_frontier(tmp_path, [ran_out])
    assert found.capacity_bytes < LIMIT_BYTES
    svg = frontier_plot(gather(tmp_path, example_sweep(), [ran_out], {}))
    assert svg is not None
    assert f">predicted frontier of {format_bytes(found.capacity_bytes)}<" in svg


@pytest.mark.parametrize(
    "search", [{}, {"model.width": {"choice": [64, 128, 256]}}, {"model.form": {"choice": ["roberta", "modern"]}}]
)
def test_frontier_is_drawn_whatever_is_swept(search: dict[str, Any], tmp_path: Path) -> None:
    sweep = example_sweep(search=search, start_with=[])
    store = TrialStore(tmp_path / "trials")
    records = [r.model_copy(update={"settings": {}, "micro_batch_size_asked": "auto"}) for r in example_records(store)]
    frontier = MemoryFrontier(LIMIT_BYTES, num_workers=1, predict=predicted_bytes)
    found = map_frontier(sweep, frontier, device="cpu")
    (tmp_path / MAP_FILE).write_text(found.model_dump_json(), encoding="utf-8")
    assert frontier_plot(gather(tmp_path, sweep, records, {})) is not None


def test_calibration_leaves_out_trials_that_ran_out(tmp_path: Path) -> None:
    changes = {"predicted_peak_memory_bytes": 100, "peak_memory_bytes": 99, "out_of_memory_events": 1}
    survived = completed(1).model_copy(update=changes)
    assert memory_prediction_plot(gather(tmp_path, example_sweep(), [survived], {})) is None


def test_mean_step_times_weigh_reports_by_their_steps() -> None:
    reports = [
        {"tokens": 100.0, "step": 1.0, "profile/forward_ms": 40.0},
        {"tokens": 400.0, "step": 4.0, "profile/forward_ms": 20.0},
    ]
    # One step of 40 ms and three of 20 ms.
    assert read_curves(reports).step_ms == {"forward": 25.0}


def test_share_of_the_rate_weighs_reports_by_their_seconds() -> None:
    reports = [
        {"tokens": 100.0, "train/tokens_per_s": 100.0, "profile/share_of_matmul_rate": 0.1},
        {"tokens": 700.0, "train/tokens_per_s": 200.0, "profile/share_of_matmul_rate": 0.2},
    ]
    # One second at 0.1 and three at 0.2.
    assert read_curves(reports).share_of_matmul_rate == pytest.approx(0.175, rel=1e-12)


def test_losses_that_are_no_numbers_are_left_out_of_curves() -> None:
    reports = [{"tokens": t, LOSS: loss} for t, loss in ((1.0, 5.0), (2.0, math.nan), (3.0, math.inf), (4.0, 4.0))]
    curve = read_curves(reports).holdout
    assert curve.tokens.tolist() == [1.0, 4.0]
    assert curve.losses.tolist() == [5.0, 4.0]


def test_thinned_curve_keeps_its_mean_and_its_order() -> None:
    reports = [{"tokens": float(t), "train/loss_nats_per_token": 10.0 - t / 1000} for t in range(4800)]
    curve = read_curves(reports).train
    assert len(curve.tokens) == 240
    assert np.all(np.diff(curve.tokens) > 0)
    # Equal parts of 20 points each, so that the mean of means is the mean.
    assert curve.losses.mean() == pytest.approx(10.0 - 4799 / 2000, rel=1e-12)
