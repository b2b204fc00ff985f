"""The plan of a sweep: one screen, the price before the purchase, and everything for scripts."""

import io
from pathlib import Path

import pytest

from sweep_examples import record, tiny_sweep
from sweeps.analysis.yardsticks import Yardsticks
from sweeps.commands.terminal import Terminal
from sweeps.planning.disk_need import DiskNeed, disk_needs
from sweeps.planning.expected_time import TimeRange, expected_time
from sweeps.planning.plan_facts import EarlierLoss, PlanFacts, earlier_loss
from sweeps.planning.plan_output import plan_as_json, print_plan
from sweeps.planning.speed_probe import Speed, known_speed
from sweeps.planning.sweep_plan import plan_sweep
from sweeps.records.results_folder import sweep_identity
from sweeps.records.trial_records import TrialStore
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file

QUICKSTART = Path("sweeps/configs/quickstart.yaml")
SPEED = Speed(10_000.0, "measured")
YARDSTICKS = Yardsticks(unigram_nats=6.6, bigram_nats=None, num_counted=1000)


def printed(facts: PlanFacts, *, everything: bool = False, width: int = 120) -> str:
    console = Terminal(file=io.StringIO(), width=width)
    print_plan(facts, console, everything=everything)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def facts_of(sweep: SweepConfig, folder: Path, **more: object) -> PlanFacts:
    plan = plan_sweep(sweep, vocabulary_size=1000, num_cpus=2, num_gpus=0)
    return PlanFacts(plan, disk_needs(plan, folder), time=expected_time(plan, SPEED), **more)  # type: ignore[arg-type]


def test_the_plan_of_the_quickstart_is_one_screen_in_the_order_of_questions(tmp_path: Path) -> None:
    sweep = load_sweep_file(QUICKSTART, ["resources.price_per_hour=2.5"])
    text = printed(facts_of(sweep, tmp_path, yardsticks=YARDSTICKS, earlier=EarlierLoss(6.4, 340_000, "quickstart-1")))
    assert len(text.splitlines()) <= 24, text
    order = ["searched", "trials", "time", "price", "disk", "What fits", "tables", "expected"]
    places = [text.index(f"\n{word}" if word != "searched" else word) for word in order]
    assert places == sorted(places), text
    assert "every default" not in text


def test_all_adds_every_default_and_json_has_everything(tmp_path: Path) -> None:
    sweep = tiny_sweep()
    facts = facts_of(sweep, tmp_path, yardsticks=YARDSTICKS)
    text = printed(facts, everything=True)
    assert text.endswith(f"{dump_sweep(sweep)}\n")
    assert "informed" in text
    found = plan_as_json(facts)
    assert facts.time is not None
    assert found["time_s"] == [facts.time.low_s, facts.time.high_s]
    assert found["yardsticks"]["unigram_nats"] == 6.6
    assert found["memory"][0]["peaks"] == found["predicted_peak_memory_bytes"]


def test_the_price_is_the_time_by_the_hour_and_no_part_of_the_sweep(tmp_path: Path) -> None:
    plain, priced = tiny_sweep(), tiny_sweep("resources.price_per_hour=36")
    assert facts_of(plain, tmp_path).price is None
    facts = facts_of(priced, tmp_path)
    assert facts.time is not None
    assert facts.price == pytest.approx((facts.time.low_s / 100, facts.time.high_s / 100))
    assert sweep_identity(plain, "data") == sweep_identity(priced, "data")
    assert "price" not in dump_sweep(plain)


def test_the_time_holds_the_expected_tokens_and_ends_with_the_wall_clock(tmp_path: Path) -> None:
    time = facts_of(tiny_sweep("early_stopping.method=none"), tmp_path).time
    assert time is not None
    assert 6 * 30_000 / SPEED.tokens_per_s < time.low_s < time.high_s
    short = facts_of(tiny_sweep("budget.wall_clock=1s"), tmp_path).time
    assert short is not None
    assert short.high_s - short.low_s <= 1


def test_without_a_measurement_the_plan_says_how_to_get_a_time(tmp_path: Path) -> None:
    plan = plan_sweep(tiny_sweep(), vocabulary_size=1000, num_cpus=2, num_gpus=0)
    assert "without --no-measure" in printed(PlanFacts(plan))


def test_earlier_trials_of_the_same_model_give_the_speed_without_a_measurement(tmp_path: Path) -> None:
    sweep, other = tiny_sweep(), tiny_sweep("model.width=64")
    folder = tmp_path / "tiny-1"
    store = TrialStore(folder / "trials")
    for number, rate in ((1, 900.0), (2, 1_100.0), (3, 1_000.0), (4, None)):
        store.save(record(number, loss=5.0, tokens_per_s=rate))
    (folder / "sweep.yaml").write_text(dump_sweep(sweep))
    (folder / "summary.json").write_text(
        '{"name": "tiny", "best": {"holdout_loss_nats_per_token": 5.0, "tokens": 30000}, "data": {"fingerprint": "f"}}'
    )
    plan = plan_sweep(sweep, vocabulary_size=1000, num_cpus=2, num_gpus=0)
    found = known_speed(sweep, plan.lanes, vocabulary_size=1000, results_folder=tmp_path)
    assert found == Speed(1_000.0 * plan.lanes.count, "as trials of tiny-1 trained")
    assert known_speed(other, plan.lanes, vocabulary_size=1000, results_folder=tmp_path) is None
    assert earlier_loss(sweep, tmp_path, fingerprint="f") == EarlierLoss(5.0, 30_000, "tiny-1")
    assert earlier_loss(sweep, tmp_path, fingerprint="g") is None


def test_each_model_of_the_space_has_its_memory(tmp_path: Path) -> None:
    sweep = tiny_sweep("search={model.width: {choice: [32, 64]}}", "training.micro_batch_size=8")
    found = facts_of(sweep, tmp_path).memory
    assert [model.name for model in found] == ["width 32", "width 64"]
    assert found[0].peaks[8] < found[1].peaks[8]


def test_every_warning_is_in_the_plan_and_a_full_disk_is_one(tmp_path: Path) -> None:
    sweep = tiny_sweep("resources.memory=100KiB")
    plan = plan_sweep(sweep, vocabulary_size=1000, num_cpus=2, num_gpus=0)
    facts = PlanFacts(plan, [DiskNeed(tmp_path, {"checkpoints": 1 << 60})])
    warnings = list(facts.warnings())
    assert any("does not fit" in words for words in warnings)
    assert any("too little room" in words for words in warnings)
    text = " ".join(printed(facts).split())
    assert all(" ".join(words.split()) in text for words in warnings)


def test_a_range_of_times_is_printed_as_clocks() -> None:
    assert str(TimeRange(185.0, 3725.0, SPEED)) == (
        "3:05 to 1:02:05, at 10,000 tokens/s of all lanes together (measured)"
    )
