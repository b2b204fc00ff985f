"""Sweeps replayed on tables of losses are sweeps: they spend what they are given and name what they trained."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "search_replay"))

from loss_table import BATCH, LEARNING_RATE, LossTable, read_tables
from table_sweep import pretune

pytestmark = pytest.mark.long

RATES, BATCHES, LENGTHS = (0.001, 0.002, 0.004, 0.008), (1.0, 2.0, 4.0, 8.0), (100, 200, 400, 1600)


def moving(rate: float, batch: float, tokens: int) -> float:
    """A loss whose best batch size doubles from an eighth of the length to the whole."""
    shift = math.log(tokens / LENGTHS[-1])
    return 3 - 0.3 * shift + 0.1 * (math.log(rate / 0.004)) ** 2 + 0.1 * (math.log(batch / 4) - 0.5 * shift) ** 2


@pytest.fixture(scope="module")
def table() -> LossTable:
    """Sixteen settings at four lengths."""
    annealed = {
        ((rate, batch), tokens): (moving(rate, batch, tokens),)
        for rate in RATES
        for batch in BATCHES
        for tokens in LENGTHS
    }
    return LossTable("moving", {LEARNING_RATE: RATES, BATCH: BATCHES}, LENGTHS, annealed, {})


@pytest.mark.parametrize("stopping", ["full-length", "trunk-and-branch", "asha", "median", "none"])
def test_a_replayed_sweep_spends_no_more_than_its_budget_and_names_settings_of_the_table(
    table: LossTable, stopping: str
) -> None:
    tokens = 6 * table.full
    named, spent = pretune(stopping)(table, tokens, 0)
    assert 0 < spent <= tokens
    assert named in table.settings_known


def test_a_part_of_a_table_has_only_the_settings_that_were_kept_and_all_short_runs(table: LossTable) -> None:
    part = table.within({LEARNING_RATE: RATES[:2], BATCH: BATCHES[1:]})
    assert set(part.settings) == {(rate, batch) for rate in RATES[:2] for batch in BATCHES[1:]}
    assert all(((rate, batch), 100) in part.annealed for rate in RATES for batch in BATCHES)
    assert part.regret(min(part.settings, key=part.true_loss)) == 0


def test_columns_of_an_unknown_table_are_named(tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text("width,loss\n64,3.0\n")
    with pytest.raises(ValueError, match="unknown columns \\['loss', 'width'\\]"):
        read_tables(file)


def test_a_public_table_is_one_job_a_model_and_reads_rates_of_three_and_four_digits_alike(tmp_path: Path) -> None:
    file = tmp_path / "public.csv"
    rows = ["N,h,numl,numh,lr,bs,D,smooth loss"]
    rows += [f"1e6,64,2,2,0.0004883,32,{d},3.0" for d in (100, 400)]
    rows += ["1e6,64,2,2,0.000488,64,100,3.1", "1e6,64,2,2,0.0004883,64,400,2.9", "2e6,64,2,2,0.001,32,100,3.3"]
    file.write_text("\n".join(rows) + "\n")
    small, large = read_tables(file)
    assert small.settings == ((0.000488, 32.0), (0.000488, 64.0))
    assert small.best_loss == 2.9
    assert large.lengths == (100,)


def test_a_table_of_our_own_has_seeds_losses_on_the_way_and_infinite_ones_after_divergence(
    tmp_path: Path,
) -> None:
    file = tmp_path / "job.csv"
    shares = [f"annealed_1_{share}" for share in (16, 8, 4, 2, 1)]
    trunk = [f"trunk_{point}_32" for point in range(1, 33)]
    header = ["learning_rate", "batch_rows", "beta2", "seed", "trunk_tokens", *shares, *trunk]
    good = ["4", "3.5", "3.2", "3.1", "3.0", *[str(5 - point / 32) for point in range(1, 33)]]
    rows = [
        ["0.001", "1", "0.95", "1", "1600", *good[:4], "3.2", *good[5:]],
        ["0.001", "1", "0.95", "0", "1600", *good],
        ["0.01", "1", "0.95", "0", "1600", *[""] * 37],
    ]
    file.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    (table,) = read_tables(file)
    setting = (0.001, 1.0, 0.95)
    assert table.lengths == (100, 200, 400, 800, 1600)
    assert table.true_loss(setting) == pytest.approx(3.1)
    assert table.loss(setting, 1600, seed=0) == 3.0
    assert table.raw_loss(setting, 800) == 4.5
    assert math.isinf(table.true_loss((0.01, 1.0, 0.95)))
    # Two seeds that are 0.2 apart.
    assert table.seed_deviation == pytest.approx(0.2 / math.sqrt(2))
