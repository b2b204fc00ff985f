import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner
from written_files import REAL_DATA, needs_real_data

from core.settings.model_config import ModelConfig
from sweep_examples import tiny_sweep
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.commands.cli import app
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.horizon.expected_optimum import expected_optimum, ranges_that_leave_it_out
from sweeps.planning.new_sweep import CorpusFacts, look_at, sweep_text, write_new_sweep
from sweeps.settings.file_schema import SCHEMA_FILE
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

PROSE = CorpusFacts(10_000, 10**8, ("jsonl",), ("utf-8",), "text", 2_000, is_hex=False)


def written(
    facts: CorpusFacts, *, path: str = "texts.jsonl", flops_per_s: float = 1e11, **settings: bool
) -> SweepConfig:
    text = sweep_text(path, facts, is_causal=settings.get("is_causal", False), flops_per_s=flops_per_s)
    return resolve_sweep(read_yaml(text), source="sweep.yaml")


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("num_bytes", [1_000, 10**6, 10**8, 10**11])
@pytest.mark.parametrize("flops_per_s", [1e9, 1e12, 1e15])
def test_file_is_valid_for_any_corpus_and_machine(num_bytes: int, flops_per_s: float, is_causal: bool) -> None:
    facts = CorpusFacts(100, num_bytes, ("txt",), ("utf-8",), None, 80, is_hex=False)
    sweep = written(facts, flops_per_s=flops_per_s, is_causal=is_causal)
    assert sweep.model.is_causal == is_causal
    assert sweep.budget.tokens_per_trial >= 20_000


def speaks_against(sweep: SweepConfig) -> list[str]:
    """What `plan` warns of before it knows memory and disk."""
    rungs = rung_tokens(sweep.early_stopping, sweep.budget.trial_tokens)
    found = [str(one) for one in remarks(sweep, rungs=rungs) if one.verdict is not RemarkVerdict.FAIR]
    return [*found, *ranges_that_leave_it_out(sweep)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("median_bytes", [80, 5_000])
@pytest.mark.parametrize("num_bytes", [1_000, 10**6, 10**8, 10**11])
@pytest.mark.parametrize("flops_per_s", [1e9, 1e10, 1e12, 1e15])
def test_a_plan_has_no_warning_about_the_file_for_any_corpus_and_machine(
    num_bytes: int, median_bytes: int, flops_per_s: float, is_causal: bool
) -> None:
    facts = CorpusFacts(100, num_bytes, ("txt",), ("utf-8",), None, median_bytes, is_hex=False)
    sweep = written(facts, flops_per_s=flops_per_s, is_causal=is_causal)
    assert speaks_against(sweep) == []
    assert len(sweep.search["training.batch_size"].extremes()) >= 2


@pytest.mark.long
@needs_real_data
@pytest.mark.parametrize("name", ["english", "chinese", "kant", "sft_en", "sft_zh", "traffic_ndpi/packets.csv"])
def test_a_plan_has_no_warning_about_the_file_of_a_real_corpus(name: str, tmp_path: Path) -> None:
    corpus = REAL_DATA / name
    if not corpus.exists():
        pytest.skip("no ../shared/data (put the corpora there)")
    facts = look_at(str(corpus))
    for flops_per_s in (1e10, 1e13):
        assert speaks_against(written(facts, path=str(corpus), flops_per_s=flops_per_s)) == []


def test_the_laws_are_those_of_the_paper_where_it_measured() -> None:
    # Step Law, arXiv:2503.04715: 1.79 N^-0.713 D^0.307 and 0.58 D^0.571 tokens, at N = 1.07e9 and D = 1e11 tokens.
    shape = ModelConfig(family="decoder", layers=16, width=2360, heads=20, sequence_length=2048)
    found = expected_optimum(shape, 10**11)
    assert found.learning_rate == pytest.approx(0.00156, rel=0.02)
    assert found.batch_rows * 2048 == pytest.approx(1_110_000, rel=0.02)


def test_a_range_far_from_the_laws_is_named_with_one_that_holds_them() -> None:
    far = ["search.training.batch_size={choice: [512, 1024]}", "search.training.learning_rate={uniform: [1e-6, 1e-5]}"]
    warned = list(ranges_that_leave_it_out(tiny_sweep(*far, "budget.tokens_per_trial=1M")))
    assert len(warned) == 2
    assert warned[0].startswith("training.batch_size is searched from 512 to 1,024, and 48 is expected to be best")
    assert "Search training.batch_size: {choice: [32, 64, 128]}" in warned[0]
    assert "training.learning_rate is searched from 1e-06 to 1e-05, and 0.003 is expected" in warned[1]
    assert list(ranges_that_leave_it_out(tiny_sweep("budget.tokens_per_trial=1M"))) == []
    adapters = tiny_sweep(*far, "training.lora={rank: 4}", "training.initial_weights=x")
    assert list(ranges_that_leave_it_out(adapters)) == []


def test_faster_machine_gets_a_larger_model_on_the_same_corpus() -> None:
    laptop, cluster = (written(PROSE, flops_per_s=rate).model for rate in (1e10, 1e14))
    assert laptop.width < cluster.width


@pytest.mark.parametrize(
    "path", ["my data/a: b.csv", "it's [1].jsonl", "s3://bucket/texts/*.jsonl.gz", "a\n\x1b[1m\x85\u202eb.csv"]
)
def test_awkward_paths_come_back_as_they_were(path: str) -> None:
    read = written(PROSE, path=path).corpus.path
    assert read == (path if "://" in path else str(Path(path).absolute()))


@pytest.mark.parametrize(
    "column", ["a, max_rejected: 100%", "b}\nresources: {memory: 1KiB", "\x1b[1m", "123", "no", "文"]
)
def test_the_name_of_a_column_adds_no_settings(column: str) -> None:
    found = written(replace(PROSE, text_column=column))
    assert found.corpus == written(PROSE).corpus.model_copy(update={"text": column})
    assert found.resources == written(PROSE).resources


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("2024.jsonl", "2024"),
        ("yes.csv", "yes"),
        ("https://127.0.0.1:80/rows.jsonl?token=s3cret", "rows"),
        ("?.txt", "sweep"),
    ],
)
def test_the_name_of_a_corpus_is_a_name_that_the_loader_takes(path: str, name: str) -> None:
    assert written(PROSE, path=path).name == name


def test_written_file_names_the_column_and_plans(tmp_path: Path) -> None:
    corpus = tmp_path / "reviews.csv"
    corpus.write_text("id,text\n" + "".join(f"{n},this is the review number {n}\n" for n in range(500)))
    target = tmp_path / "sweep.yaml"
    done = CliRunner().invoke(app, ["new", str(corpus), "-o", str(target)])
    assert done.exit_code == 0, done.output
    sweep = load_sweep_file(target)
    assert (sweep.name, sweep.corpus.path, sweep.corpus.text) == ("reviews", str(corpus), "text")
    assert CliRunner().invoke(app, ["plan", str(target), "--no-measure"]).exit_code == 0
    # An editor finds the schema beside the file, without a network.
    assert target.read_text().startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    schema = json.loads((tmp_path / SCHEMA_FILE).read_text())
    Draft202012Validator(schema).validate(read_yaml(target.read_text()).values)
    again = CliRunner().invoke(app, ["new", str(corpus), "-o", str(target)])
    assert again.exit_code == 2
    assert "exists already" in again.output


def test_corpus_that_a_sweep_would_refuse_is_refused_with_the_reasons(tmp_path: Path) -> None:
    corpus = tmp_path / "broken.jsonl"
    corpus.write_text(json.dumps({"text": "good"}) + "\n" + "{broken\n" * 5)
    done = CliRunner().invoke(app, ["new", str(corpus), "-o", str(tmp_path / "sweep.yaml")])
    assert done.exit_code == 2
    assert "malformed JSON" in done.output
    assert not (tmp_path / "sweep.yaml").exists()


def test_books_with_broken_lines_are_documents_by_paragraph(tmp_path: Path) -> None:
    line = "the words of a sentence that is broken at a width and ends on some"
    paragraph = "\n".join([line] * 4 + ["later line."])
    corpus = tmp_path / "book.txt"
    corpus.write_text("\n\n".join(f"{number} {paragraph}" for number in range(50)))
    facts = look_at(str(corpus))
    assert (facts.is_wrapped, facts.num_rows) == (True, 50)
    sweep = written(facts, path=str(corpus))
    assert sweep.corpus.documents == "paragraphs"
    assert "a document is a paragraph" in sweep_text(str(corpus), facts, is_causal=False, flops_per_s=1e11)
    corpus.write_text("\n".join(f"{number} A line that is a sentence." for number in range(200)))
    assert not look_at(str(corpus)).is_wrapped


def test_conversations_get_a_decoder_and_an_objective_that_takes_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good day to you"}]
    corpus = tmp_path / "talk.jsonl"
    corpus.write_text("".join(json.dumps({"id": n, "conversations": turns}) + "\n" for n in range(100)))
    sweep = written(look_at(str(corpus)), path=str(corpus))
    assert sweep.model.is_causal
    assert sweep.objective.sft is not None


def test_long_documents_get_long_rows_and_the_reason_is_said() -> None:
    for num_bytes, length in ((80, 128), (700, 256), (4000, 512)):
        facts = replace(PROSE, median_bytes=num_bytes)
        assert written(facts).model.sequence_length == length
        assert f"so rows have {length}." in sweep_text("x", facts, is_causal=False, flops_per_s=1e11)


@needs_real_data
def test_packets_are_known_by_their_hex_words_and_prose_is_not() -> None:
    assert look_at(str(REAL_DATA / "traffic_ndpi/packets.csv")).is_hex
    assert not look_at(str(REAL_DATA / "kant/kant.txt")).is_hex


@needs_real_data
@pytest.mark.parametrize(
    "corpus",
    [
        *("chinese/poems_minimind.jsonl", "chinese/tf_docs_zh.jsonl", "english/books", "english/tinyshakespeare.txt"),
        *("english/ulysses_latin1_crlf_raw.txt", "kant/kant.txt", "kant/gbk_crcrlf_book.txt"),
        *("sft_en/self_instruct_conversations.jsonl", "sft_zh/kdconv_conversations.jsonl"),
        *("traffic_ndpi/packets.csv", "traffic_ndpi/flows_etbert.tsv"),
    ],
)
def test_file_for_a_real_corpus_plans(corpus: str, tmp_path: Path) -> None:
    target = tmp_path / "sweep.yaml"
    text = write_new_sweep(str(REAL_DATA / corpus), target, is_causal=False, training_flops_per_s=1e10)
    assert text.startswith("# ")
    # Else it is measured how many lanes are fastest, which takes seconds and is proved in test_auto_lanes.py.
    lanes = ("--set", "resources.concurrent_trials=1", "--results", str(tmp_path))
    planned = CliRunner().invoke(app, ["plan", str(target), "--json", "--no-measure", *lanes])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.output)["largest_micro_batch"]
