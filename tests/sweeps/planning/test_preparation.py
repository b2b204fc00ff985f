"""`pretune prepare` and `--check`, as they are met on a terminal."""

import io
import json
import re
from pathlib import Path

import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner, Result

from data_pipeline.schema.manifest import read_manifest
from sweep_examples import TINY
from sweeps.commands.cli import app
from sweeps.planning import preparation
from sweeps.planning.preparation import prepare_with_progress
from sweeps.settings.sweep_file import load_sweep_file

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("no_ray_left")]

ROWS = "".join(json.dumps({"text": f"text number {n % 900} of the corpus"}) + "\n" for n in range(1000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep file on a folder of two files, one of them not UTF-8, with rejects of two reasons and a README."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(ROWS + "{broken\n" + '{"text": ""}\n' * 4)
    (folder / "lines.txt").write_bytes("Le café est à côté\noù la forêt brûle\n".encode("latin-1") * 20)
    (folder / "README.md").write_text("not for training")
    path = tmp_path / "sweep.yaml"
    path.write_text(re.sub(r"corpus: .*", f"corpus: {{path: {folder}, holdout: 5%}}", TINY))
    return path


def prepare(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["prepare", str(file), "--results", str(file.parent / "results"), *arguments])


def words_of(output: str, beginning: str) -> list[str]:
    """The line that begins so, word by word."""
    (line,) = [line for line in output.splitlines() if line.startswith(beginning)]
    return line.split()


def check_files_and_rejects(output: str) -> None:
    assert words_of(output, "rows.jsonl") == ["rows.jsonl", "jsonl", "utf-8", "text", "1,005", "1,000", "5"]
    assert words_of(output, "lines.txt") == ["lines.txt", "txt", "latin-1", "lines", "40", "40", "0"]
    assert words_of(output, "together")[1:] == ["1,045", "1,040", "5"]
    rejected = [line for line in output.splitlines() if line.startswith("rejected")]
    assert rejected == ["rejected     4 rows, 0.4%: empty text", "rejected     1 row, 0.1%: malformed JSON"]
    assert "passed over  README.md: a README" in output


def test_check_says_of_every_file_what_would_be_kept_and_writes_and_starts_nothing(file: Path) -> None:
    result = prepare(file, "--check")
    assert result.exit_code == 0, result.output
    check_files_and_rejects(result.output)
    # Three of the four empty rows are shown, by line, and the only broken one.
    shown = [line.split("  ")[1] for line in result.output.splitlines() if line.startswith("  rows.jsonl:")]
    assert shown == ["rows.jsonl:1001", "rows.jsonl:1002", "rows.jsonl:1003", "rows.jsonl:1004"]
    assert "1,040 of 1,045 rows would be kept" in result.output
    assert not (file.parent / "results").exists()
    assert not ray.is_initialized()


def test_check_ends_with_the_fault_that_would_stop_preparation(file: Path) -> None:
    result = prepare(file, "--check", "--set", "corpus.max_rejected=0.1%")
    assert result.exit_code == 2
    assert "5 of 1,045 rows" in result.output
    assert "corpus.max_rejected: 1%" in result.output
    assert "Traceback" not in result.output


def test_preparation_ends_in_a_table_of_files_rejects_and_tokens(file: Path) -> None:
    result = prepare(file)
    assert result.exit_code == 0, result.output
    check_files_and_rejects(result.output)
    (folder,) = (file.parent / "results" / "prepared").glob("[!.]*")
    manifest = read_manifest(folder)
    tokens = sum(split.num_tokens for split in manifest.splits.values())
    report = manifest.tokenizer_report
    assert words_of(result.output, "tokens")[1] == f"{tokens:,}:"
    assert f"{report.bytes_per_token:.2f} bytes a token" in result.output
    assert f"{manifest.padding_share:.1%} padding" in result.output
    assert str(folder / "rejects.jsonl") in result.output
    # 100 of the JSON rows, and all lines but two of the text file.
    assert words_of(result.output, "duplicates")[1] == "138"
    assert prepare(file).output == result.output
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_small_corpus_is_prepared_without_ray_to_the_bytes_that_ray_makes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for limit in (64 << 20, 0):
        monkeypatch.setattr(preparation, "_FEWEST_BYTES_ON_RAY", limit)
        results = file.parent / f"results-{limit}"
        data = prepare_with_progress(load_sweep_file(file), results, Console(file=io.StringIO()))
        assert ray.is_initialized() == (limit == 0)
        names = ["tokenizer.json", "rejects.jsonl", *sorted(path.name for path in data.folder.glob("*.arrow"))]
        made.append((data.folder.name, {name: (data.folder / name).read_bytes() for name in names}))
    assert made[0] == made[1]


def test_terminal_shows_the_progress_of_each_phase(file: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    prepare_with_progress(load_sweep_file(file), file.parent / "results", console)
    for phase in ("reading files", "judging rows", "training the tokenizer", "tokenizing"):
        assert phase in screen.getvalue()
    sizes = re.findall(r"([\d.]+ KiB) of ([\d.]+ KiB)", screen.getvalue())
    assert any(done == total for done, total in sizes)


def test_long_lists_of_files_end_in_a_count_of_the_others(tmp_path: Path, file: Path) -> None:
    for number in range(200):
        (tmp_path / "corpus" / f"{number:03d}.txt").write_text("a line of text\nand another\n")
    result = prepare(file, "--check")
    assert words_of(result.output, "and 172 more") == ["and", "172", "more", "1,385", "1,380", "5"]
    assert words_of(result.output, "together")[1:] == ["1,445", "1,440", "5"]
