import csv
import json
import math
import re
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from swept_folder import example_manifest, example_records, example_sweep, refuse_some, write_frontier, write_results

from sweep_examples import record as example_record
from sweeps.analysis.result_tables import ranked
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS, ChosenBy, TrialRecord, TrialStore
from sweeps.report.report import write_pictures, write_report
from sweeps.trained_models.sample_outputs import Sample


class Page(HTMLParser):
    """Tables by name, each a list of rows from column name to shown text or exact number; tags must balance.

    `shown` has the same tables as a reader sees them: head and rows.
    """

    _VOID = frozenset({"meta", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, str]]] = {}
        self.shown: dict[str, list[list[str]]] = {}
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._seen: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "srcset")]
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag not in self._VOID:
            self._open.append(tag)
        if tag == "table":
            self._name, self._rows, self._seen = given.get("data-name") or "", [], []
        elif tag == "tr":
            self._rows.append([])
            self._seen.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._seen[-1].append("")
        elif tag == "data":
            self._rows[-1][-1] = given["value"] or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self._VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            head, *rows = self._rows
            self.shown[self._name] = self._seen
            self.tables[self._name] = [dict(zip(head, row, strict=True)) for row in rows]

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            self._seen[-1][-1] += "" if "pre" in self._open else data
            self._rows[-1][-1] += "" if "data" in self._open else data


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    store = TrialStore(folder / "trials")
    records = example_records(store)
    refuse_some(store)
    write_frontier(folder, records)
    (folder / "prepared").mkdir()
    (folder / "prepared" / "manifest.json").write_text(example_manifest().model_dump_json(), encoding="utf-8")
    summary = write_results(folder, records, command=["pretune", "sweep", "my file.yaml"])
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    write_report(folder, example_sweep(), records, summary)
    return folder


@pytest.fixture(scope="module")
def page(reported: Path) -> Page:
    return Page((reported / "report.html").read_text(encoding="utf-8"))


def trials_csv(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def report_of(
    folder: Path,
    records: list[TrialRecord],
    *,
    status: SweepStatus = SweepStatus.FINISHED,
    summary: dict[str, Any] | None = None,
    **sweep: Any,
) -> str:
    """Text of the page of a sweep with these records."""
    made = write_results(folder, records, status=status) if summary is None else summary
    write_report(folder, example_sweep(**sweep), records, made)
    assert (folder / "EXPERIMENT.md").read_text(encoding="utf-8").startswith("# traffic-mlm\n")
    return Page((folder / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("table", "column", "csv_column"),
    [
        ("ranking", "rank", "rank"),
        ("ranking", "outcome", "outcome"),
        ("ranking", "holdout loss", "holdout_loss_nats_per_token"),
        ("ranking", "perplexity", "holdout_perplexity"),
        ("ranking", "accuracy", "holdout_accuracy"),
        ("ranking", "tokens", "tokens"),
        ("ranking", "tokens/s", "tokens_per_s"),
        ("ranking", "batch_size", "training.batch_size"),
        ("ranking", "learning_rate", "training.learning_rate"),
        ("memory", "micro-batch asked", "micro_batch_size_asked"),
        ("memory", "used", "micro_batch_size_used"),
        ("memory", "predicted", "predicted_peak_memory_bytes"),
        ("memory", "measured", "measured_peak_memory_bytes"),
        ("memory", "limit", "memory_limit_bytes"),
        ("memory", "margin left", "measured_memory_margin"),
        ("memory", "verdict", "memory_verdict"),
        ("trials", "outcome", "outcome"),
        ("trials", "tokens", "tokens"),
        ("trials", "training, s", "training_s"),
        ("ranking", "micro_batch_size", "training.micro_batch_size"),
        ("trials", "rank", "rank"),
        ("trials", "chosen by", "chosen_by"),
        ("memory", "outcome", "outcome"),
        ("time", "tokens/s", "tokens_per_s"),
        ("time", "training, s", "training_s"),
        ("noise", "batch size, rows", "training.batch_size"),
        ("ties", "seeds", "seeds"),
        ("ties", "mean loss", "mean_holdout_loss_over_seeds_nats_per_token"),
        ("comparison", "holdout loss", "holdout_loss_nats_per_token"),
    ],
)
def test_numbers_of_the_page_equal_those_of_trials_csv(
    reported: Path, page: Page, table: str, column: str, csv_column: str
) -> None:
    expected = trials_csv(reported)
    rows = [{"trial": row.get("trial") or row["trial of start_with"]} | row for row in page.tables[table]]
    assert len(rows) == {"ties": 8, "comparison": 1, "ranking": 14, "time": 14, "noise": 14}.get(table, 18)
    for row in rows:
        assert row[column] == expected[row["trial"]][csv_column], f"{row['trial']}, {column}"


def test_every_trial_stands_on_the_page_with_outcome_and_reason(reported: Path, page: Page) -> None:
    expected = trials_csv(reported)
    assert [row["trial"] for row in page.tables["trials"]] == list(expected)
    for row in page.tables["trials"]:
        assert expected[row["trial"]]["reason"].splitlines()[-1] in row["reason"]


def test_seconds_by_outcome_equal_those_of_the_summary(reported: Path, page: Page) -> None:
    summary = json.loads((reported / "summary.json").read_text(encoding="utf-8"))
    shown = {row["outcome"]: float(row["training, s"]) for row in page.tables["waste"]}
    assert shown == summary["training_s_by_outcome"]
    assert {row["outcome"]: int(row["trials"]) for row in page.tables["waste"]} == summary["outcomes"]


def test_every_table_of_the_record_is_a_table_of_the_page_with_the_same_cells(reported: Path, page: Page) -> None:
    tables = tables_of_markdown((reported / "EXPERIMENT.md").read_text(encoding="utf-8"))
    shown = {name: [[" ".join(cell.split()) for cell in row] for row in table] for name, table in page.shown.items()}
    assert len(tables) >= 14
    assert [table for table in shown.values() if table not in tables] == []
    # Errors have a table of their own in the record; the page has them among the trials.
    (errors,) = [table for table in tables if table not in shown.values()]
    reasons = {row[1]: row[-1] for row in shown["trials"]}
    assert len(errors) > 3
    assert [(name, reason) for name, *_, reason in errors[1:]] == [(name, reasons[name]) for name, *_ in errors[1:]]


def tables_of_markdown(text: str) -> list[list[list[str]]]:
    """Tables as lists of rows, the head first, without their marks."""
    found: list[list[list[str]]] = []
    for line in [*text.splitlines(), ""]:
        if not line.startswith("| "):
            found += [[]] if not found or found[-1] else []
            continue
        if set(line) <= set("|-: "):
            continue
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        found[-1].append([unescape(cell.strip().replace("\\|", "|")) for cell in cells])
    return [table for table in found if table]


def test_record_has_the_sections_of_a_laboratory_record_in_order(reported: Path) -> None:
    record = (reported / "EXPERIMENT.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", record, flags=re.MULTILINE)
    assert titles == [
        *("Purpose", "Setup", "Command, code, environment", "Data", "Timeline", "Trials", "Errors", "Time"),
        *("Memory and micro-batch", "Critical batch size", "Loss curves", "Samples", "Ranking"),
        *(
            "Winner and noise",
            "Length of training",
            "Equal tokens, time, operations",
            "Settings",
            "Comparison with the baseline",
        ),
        *("Other stopping rules", "Fairness", "Targets", "What was wasted", "Problems found", "Conclusions"),
        "What to try next",
    ]


def test_page_asks_nothing_of_the_network(reported: Path, page: Page) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\((?!#)", text)


def test_links_of_the_page_lead_somewhere_and_names_are_given_once(page: Page) -> None:
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_pictures_are_whole_xml_with_colours_of_the_page(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 8
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "var(--muted" in picture
        assert "#0001" not in picture


def test_page_says_what_was_read_kept_and_rejected(page: Page) -> None:
    assert "18,090 of 18,092 rows kept, 2 rejected" in page.text
    assert [(row["rejected because"], row["rows"]) for row in page.tables["rejects"]] == [("empty <text>", "2")]
    assert page.tables["splits"][0]["tokens"] == "1500000"
    assert page.tables["files"][0]["file"] == "packets<1>.csv"


def test_command_is_shown_as_a_shell_takes_it(page: Page) -> None:
    assert "pretune sweep 'my file.yaml'" in page.text


def test_a_command_is_shown_without_the_folder_of_its_program(tmp_path: Path) -> None:
    for place, typed in (("/opt/venv/bin/pretune", "pretune sweep a.yaml"), ("/w/sweeps/__main__.py", "-m sweeps")):
        summary = write_results(tmp_path, [], command=[place, "sweep", "a.yaml"])
        assert typed in report_of(tmp_path, [], summary=summary)
        assert place not in report_of(tmp_path, [], summary=summary)


def test_calibration_of_the_page_is_that_of_the_summary(reported: Path, page: Page) -> None:
    found = json.loads((reported / "summary.json").read_text(encoding="utf-8"))["memory_calibration"]
    assert found["calibrated_trials"] == 14
    words = f"{found['median_relative_error']:.2%} off the predicted one in the median of 14 trials"
    assert words in page.text


def test_frontier_says_what_was_learnt_and_what_else_moves_it(page: Page) -> None:
    assert "exceeds 1.65 GiB (trial-0014 ran at a predicted 1.65 GiB)" in page.text


def test_refused_proposals_are_counted_by_verdict(page: Page) -> None:
    assert [(row["refused before launch"], row["proposals"]) for row in page.tables["refused"]] == [
        ("refused by prediction", "2")
    ]
    assert {row["micro-batch"]: row["never launched"] for row in page.tables["what-fits"]}["64"] == "2"


def test_best_minus_baseline_is_the_difference_of_their_losses(reported: Path, page: Page) -> None:
    expected = trials_csv(reported)
    best = float(next(iter(expected.values()))["holdout_loss_nats_per_token"])
    (row,) = page.tables["comparison"]
    assert row["trial of start_with"] == "trial-0001"
    loss = float(expected["trial-0001"]["holdout_loss_nats_per_token"])
    assert float(row["best minus it"]) == best - loss


def test_words_of_users_are_never_markup(tmp_path: Path) -> None:
    nasty = '<script>alert("1")</script> & `<b>code</b>` | pipe'
    record = TrialRecord(number=1, settings={}, outcome=Outcome.FAILED, reason=nasty)
    trace = record.model_copy(update={"number": 2, "reason": f"Traceback\n{nasty}\n<b>{nasty}"})
    text = report_of(
        tmp_path, [record, trace], purpose=nasty, search={"training.initial_weights": {"choice": ["<i>a</i>", "b"]}}
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|b)\b", html)
    assert text.count('<script>alert("1")</script> &') >= 4
    record_text = (tmp_path / "EXPERIMENT.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"```.*?```", "", record_text, flags=re.DOTALL)
    assert "\\| pipe" in record_text


def test_no_trial_at_all_makes_a_report(tmp_path: Path) -> None:
    text = report_of(tmp_path, [], status=SweepStatus.INTERRUPTED)
    assert "No trial completed, so there is no best trial." in text
    assert "No trial has started." in text


def test_sweep_that_has_only_begun_says_what_is_not_known_yet(tmp_path: Path) -> None:
    running = TrialRecord(number=1, settings={"training.learning_rate": 1e-3}, started_at="2026-03-02T09:00:00+00:00")
    text = report_of(tmp_path, [running], summary={})
    assert "pretune sweep, running" in text
    assert "No trial has completed yet." in text
    assert "The command was not recorded." in text
    assert "The summary has no figures of the corpus." in text


def test_sweep_in_which_nothing_fits_makes_a_report(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    records = [record for record in example_records(store, num_trials=17) if record.outcome is Outcome.INFEASIBLE]
    text = report_of(tmp_path, records)
    assert "No trial completed, so no settings can be recommended." in text
    assert f"{len(records)} of {len(records)} trials and proposals do not fit" in text


def test_one_trial_without_swept_settings_makes_a_report(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    record = example_records(store, num_trials=1)[0].model_copy(update={"settings": {}, "chosen_by": ChosenBy.SEARCH})
    text = report_of(tmp_path, [record], search={}, start_with=[])
    assert "No setting was swept." in text
    assert "trial-0001 is the best of 1 completed trials" in (tmp_path / "EXPERIMENT.md").read_text()


def test_loss_that_is_no_number_is_shown_and_never_best(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    records = [r for r in example_records(store, num_trials=5) if r.outcome is Outcome.COMPLETED]
    broken = records[0].model_copy(update={"number": 99, "metrics": {LOSS: math.nan, "holdout/accuracy": math.inf}})
    text = report_of(tmp_path, [broken, *records])
    assert "trial-0099: the last holdout loss is not finite." in text
    best = min(records, key=lambda record: record.metrics[LOSS])
    assert f"best trial{best.name}holdout loss{best.loss:.4f}" in text.replace("\n", "")


def test_interrupted_sweep_says_how_to_resume(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    records = example_records(store, num_trials=4)
    records[-1] = records[-1].model_copy(update={"outcome": Outcome.INTERRUPTED, "reason": "a node was lost"})
    text = report_of(tmp_path, records, status=SweepStatus.INTERRUPTED)
    assert "1 trial did not end. The same command resumes from the checkpoints" in text


def test_settings_listed_outside_the_space_make_a_report(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    records = example_records(store, num_trials=8)
    settings = {"training.learning_rate": 0.5, "training.micro_batch_size": "auto", "training.clip": 0.5}
    records[0] = records[0].model_copy(update={"settings": settings, "micro_batch_size_asked": "auto"})
    assert "clip" in report_of(tmp_path, records)


def test_ties_are_marked_where_seeds_were_repeated(tmp_path: Path) -> None:
    records = [
        TrialRecord(
            number=number, settings={"training.learning_rate": rate, "training.seed": seed}, outcome=Outcome.COMPLETED,
            metrics={LOSS: loss},
        )
        for number, (rate, seed, loss) in enumerate(
            [(1e-3, 0, 4.00), (1e-3, 1, 4.02), (2e-3, 0, 4.05), (2e-3, 1, 4.03), (9e-3, 0, 5.0)], start=1
        )
    ]  # fmt: skip
    search = {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "training.seed": {"choice": [0, 1]}}
    # Two pairs 0.02 apart: squares of 2 * 2 * 0.01^2, and of 2 * 0.01^2 from the prior, over 4 degrees of freedom:
    # 0.0122 nats; means 0.03 apart.
    text = report_of(tmp_path, records, search=search)
    assert "The standard deviation of the loss between seeds is 0.0122 nats" in text
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    tied = [row["trial"] for row in page.tables["ranking"] if row["tie"]]
    assert tied == ["trial-0004", "trial-0003"]


def test_report_replaces_itself_whole_and_says_the_same_again(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    records = example_records(store, num_trials=3)
    texts = []
    for _ in range(2):
        report_of(tmp_path, records)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        texts.append(re.sub(r"Written [\d: -]+UTC", "", text))
    assert texts[0] == texts[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EXPERIMENT.md", "report.html", "trials", "trials.csv"]


def test_git_state_names_commit_and_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "sweep.yaml").write_text("name: a\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "First <sweep>"]):
        subprocess.run(["git", *arguments], cwd=checkout, check=True)
    (checkout / "sweep.yaml").write_text("name: b\n")
    monkeypatch.chdir(checkout)
    text = report_of(tmp_path, [])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    assert head.stdout.strip() in text
    assert "First <sweep>" in text
    assert "changed sincesweep.yaml" in text.replace("\n", "")


def test_folder_outside_of_git_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "the working directory was no git checkout" in report_of(tmp_path, [])


@pytest.mark.slow
def test_models_that_differ_stand_side_by_side_with_their_sizes(tmp_path: Path) -> None:
    records = [
        example_record(number, settings={"model.feed_forward": kind, "model.equal_in": "parameters"}, loss=loss)
        for number, (kind, loss) in enumerate([("geglu", 5.0), ("none", 6.0), ("moe", 5.5)], start=1)
    ]
    search = {
        "model.feed_forward": {"choice": ["geglu", "none", "moe"]},
        "model.equal_in": {"choice": ["parameters"]},
    }
    modern = {"layers": 2, "width": 64, "heads": 4, "sequence_length": 128, "form": "modern"}
    report_of(tmp_path, records, search=search, start_with=[], model=modern)
    rows = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tables["models"]
    assert [row["trial"] for row in rows] == ["trial-0001", "trial-0003", "trial-0002"]
    sizes = [int(row["parameters"].replace(",", "")) for row in rows]
    # The vocabulary's weights are there as well, so what is left of the difference is small.
    assert max(sizes) / min(sizes) < 1.1
    assert rows[2]["layers"] > rows[0]["layers"], "a model without feed-forward has more layers instead"
    words = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Equal in parameters: geglu has the lowest loss, 5.0000 nats per token. moe +0.5000 nats" in words
    assert "none +1.0000 nats" in words


@pytest.mark.long
def test_hundred_trials_make_a_page_that_opens_at_once(tmp_path: Path) -> None:
    records = example_records(TrialStore(tmp_path / "trials"), num_trials=100)
    report_of(tmp_path, records, budget={"trials": 100, "tokens_per_trial": 2_000_000})
    assert len(ranked(records)) == 100
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_samples_are_shown_with_their_loss(tmp_path: Path) -> None:
    sample = Sample(text="the ⟦red⟧ <cat>", made="the ⟦old⟧ <cat>", loss_nats_per_token=2.345678901)
    summary = write_results(tmp_path, [], samples=[sample.model_dump()])
    report_of(tmp_path, [], summary=summary)
    (row,) = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tables["samples"]
    assert row == {"holdout": "the ⟦red⟧ <cat>", "model": "the ⟦old⟧ <cat>", "loss": "2.345678901"}


@pytest.mark.long
def test_pictures_are_written_as_files_that_need_no_page(reported: Path, tmp_path: Path) -> None:
    summary = json.loads((reported / "summary.json").read_text(encoding="utf-8"))
    paths = write_pictures(tmp_path / "pictures", reported, example_sweep(), summary)
    assert "frontier.svg" in {path.name for path in paths}
    assert len({path.name for path in paths}) == len(paths) == 8
    for path in paths:
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "var(" not in text
        assert text.count('<rect width="100%" height="100%" fill="#') == 1
