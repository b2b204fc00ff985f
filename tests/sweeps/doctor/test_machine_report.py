"""`pretune doctor` on a machine without a GPU, and with ones that nobody has."""

import io
import json
from pathlib import Path

import pytest

from command import run
from core.doctor.check import Check
from data_pipeline.files.plain_json import parse_object
from gpu_cards import a_card
from sweeps.commands.terminal import Terminal
from sweeps.doctor import machine_report
from sweeps.doctor.machine_report import print_report, report_on_machine, write_report
from sweeps.doctor.six_trials import six_trials
from sweeps.lanes import hardware
from sweeps.lanes.cards import CardsError


def test_verdicts_are_a_table_with_counts_and_json(tmp_path: Path) -> None:
    found = [Check("a", "pass", "1 GiB/s", {"rate_bytes_per_s": 1.0}), Check("b [x]", "not applicable", "no GPU")]
    shown = io.StringIO()
    print_report(found, Terminal(file=shown, width=100))
    lines = shown.getvalue().splitlines()
    assert lines[1].split() == ["a", "pass", "1", "GiB/s"]
    assert "b [x]" in lines[2]
    assert lines[-1] == "1 pass, 0 fail, 1 not applicable, 0 not run"
    write_report(found, tmp_path / "doctor.json")
    written = json.loads((tmp_path / "doctor.json").read_text())["checks"]
    assert [Check(**one) for one in written] == found


def test_unequal_cards_and_cards_that_do_not_answer_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(cards: object) -> dict[str, Check]:
        for module in (machine_report, hardware):
            monkeypatch.setattr(module, "cards_now", cards)
        monkeypatch.setattr(machine_report, "examine", lambda *_, **__: [])
        return {check.subject: check for check in report_on_machine(minutes=0.001, say=lambda _: None)}

    def silent() -> None:
        raise CardsError("the GPUs of node 1 do not answer")

    assert of(lambda: [a_card(), a_card("T4", total=16)])["equal GPUs"].verdict == "fail"
    assert of(lambda: [a_card(), a_card()])["equal GPUs"].words == "2 of one kind"
    assert of(list)["equal GPUs"].verdict == "not applicable"
    assert of(silent)["hardware"] == Check("hardware", "fail", "the GPUs of node 1 do not answer")
    assert of(list)["sweep of 6 trials"].verdict == "not run"


@pytest.mark.slow
def test_doctor_ends_within_its_time_and_nothing_fails_here(tmp_path: Path) -> None:
    code, output = run("doctor", "--minutes", "1", "--write", tmp_path / "doctor.json")
    assert code == 0, output
    found = [Check(**one) for one in parse_object((tmp_path / "doctor.json").read_bytes())["checks"]]
    assert {check.subject for check in found} > {"hardware", "precision", "matrix products", "memory bandwidth"}
    assert "all-reduce, nccl" in output
    assert "not applicable" in output


@pytest.mark.slow
@pytest.mark.ray
def test_six_trials_run_from_end_to_end() -> None:
    check = six_trials()
    assert check.verdict == "pass", check.words
