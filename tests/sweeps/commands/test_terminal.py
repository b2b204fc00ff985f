"""Text from files, models and the environment is shown on the terminal and never acts on it."""

import ast
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from swept_folder import example_records, example_sweep, write_results
from typer.testing import CliRunner

from command import ROOT
from data_pipeline.schema.terminal_text import visible
from small_models import exported
from sweep_examples import TINY, record
from sweeps.analysis.result_tables import write_summary
from sweeps.commands.cli import app
from sweeps.commands.terminal import Terminal
from sweeps.execution.live_progress import Progress
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialStore
from sweeps.settings.sweep_file import dump_sweep

ATTACKS = {
    "markup": "[red]x[/red] [link=http://evil.example]y[/link] [/] :warning:",
    "title": "\x1b]0;owned\x07",
    "colour": "\x1b[41m",
    "link": "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "C1": "\x9b41m\x9downed\x9c",
    "return": "safe\rforged",
    "backspace": "safe\b\b\b\bevil",
    "override": "\u202egnp.exe\u2066",
    "line": "safe\nbest     trial-0666",
}
NASTY = "".join(ATTACKS.values())


def printed(*objects: object, width: int = 1000) -> str:
    file = io.StringIO()
    Terminal(file=file, width=width).print(*objects, highlight=False)
    return file.getvalue()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_string_is_printed_on_one_line_as_it_is_written(attack: str) -> None:
    assert printed(f"name {attack}") == f"name {visible(attack)}\n"


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_cells_and_headings_of_a_table_have_room_for_their_escapes(attack: str) -> None:
    table = Table(attack, "b", box=None, pad_edge=False)
    table.add_row(attack, "c")
    head, row = printed(table).splitlines()
    assert (head.split()[-1], row.split()[-1]) == ("b", "c")
    assert head.rstrip("b").rstrip() == row.rstrip("c").rstrip() == visible(attack)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_styled_text_that_was_not_escaped_does_not_act_either(attack: str) -> None:
    assert acting(printed(Text(attack, "bold"))) == set()


def acting(output: str) -> set[str]:
    """Characters of an output that act on a terminal, and are neither the ends of lines nor their colours."""
    without_colours = re.sub(r"\x1b\[[0-9;]*m", "", output)
    return {char for char in without_colours if visible(char) != char} - {"\n", "\r"}


def on_a_terminal(folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and output of a command whose standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    while chunk := _read(ours):
        output += chunk
    os.close(ours)
    return process.wait(), output.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux ends a pseudo terminal with EIO.
        return b""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of files with nasty names, keys and rows, one name no UTF-8; beside it the sweep file that reads it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    name = NASTY.replace("/", "").encode()[:200]
    rows = [json.dumps({"text": f"row {number} {NASTY}"}) for number in range(30)]
    (folder / "plain.jsonl").write_text("\n".join([*rows, json.dumps({NASTY: 1}), '{"text": "\x1b[41m']))
    Path(os.fsdecode(bytes(folder) + b"/" + name + b".jsonl")).write_text("\n".join(rows))
    Path(os.fsdecode(bytes(folder) + b"/\xff\x9b41m.jsonl")).write_text("\n".join(rows))
    Path(os.fsdecode(bytes(folder) + b"/" + name + b".bin")).write_bytes(b"\x00\x01\x02\x1b" * 99)
    text = TINY.replace("builtin: python-docs", f"path: {folder}, max_rejected: 50%")
    (tmp_path / "tiny.yaml").write_text(text)
    return folder


@pytest.mark.long
def test_a_check_of_a_corpus_with_nasty_names_keys_and_rows_does_nothing_to_the_terminal(corpus: Path) -> None:
    code, output = on_a_terminal(corpus.parent, "prepare", "tiny.yaml", "--check")
    assert (code, acting(output)) == (0, set()), output
    assert "\\x1b]0;owned\\x07" in output
    assert "\\udcff" in output
    assert "[red]x[" in output


@pytest.mark.long
def test_a_fault_that_names_a_nasty_file_does_nothing_to_the_terminal(tmp_path: Path) -> None:
    name = NASTY.replace("/", "")[:100] + ".yaml"
    (tmp_path / name).write_text(f"name: x\n{json.dumps(NASTY)}: 1\n")
    code, output = on_a_terminal(tmp_path, "plan", name)
    assert (code, acting(output)) == (2, set()), output
    assert "\\x1b]0;owned\\x07" in output
    assert not re.search(r"^best", re.sub(r"\x1b\[[0-9;]*m", "", output), re.MULTILINE)


def test_json_of_a_check_holds_no_acting_character_and_the_names_themselves(corpus: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", str(corpus.parent / "tiny.yaml"), "--check", "--json"])
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    assert visible(line) == line
    names = {Path(one["path"]).name for one in json.loads(line)["files"]}
    # A name that is no UTF-8 has no other form than the shown one.
    assert {_exact(name) for name in os.listdir(corpus) if name.endswith(".jsonl")} <= names


def _exact(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        return visible(name)
    return name


def test_a_comparison_of_nasty_sweeps_shows_their_names_and_settings(tmp_path: Path) -> None:
    folders = [tmp_path / ATTACKS["markup"].replace("/", ""), tmp_path / f"two{ATTACKS['C1']}"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        records = example_records(TrialStore(folder / "trials"), seed=seed)
        corpus = {"path": f"data/{seed}{NASTY}"}
        (folder / "sweep.yaml").write_text(dump_sweep(example_sweep(corpus=corpus)))
        write_summary(folder / "summary.json", write_results(folder, records))
    done = CliRunner().invoke(app, ["report", *map(str, folders)])
    assert done.exit_code == 0, done.output
    assert acting(done.output) == set()
    assert "[red]x[red]" in done.output.replace("\n", "").replace(" ", "")


@pytest.mark.usefixtures("one_thread")
def test_generated_text_and_filled_masks_are_shown_with_escapes_and_as_json_exactly(tmp_path: Path) -> None:
    decoder, encoder = exported(tmp_path / "decoder", "decoder"), exported(tmp_path / "encoder", "encoder")
    # Hot sampling from bytes gives control characters of every kind.
    asked = ["generate", str(decoder), "a\x1b[41mb", "--temperature", "9", "--max-new-tokens", "24", "--seed", "1"]
    shown, exact = CliRunner().invoke(app, asked).stdout, CliRunner().invoke(app, [*asked, "--json"]).stdout
    continuation = json.loads(exact)["continuation"]
    assert acting(continuation)
    assert shown == visible(continuation, keep="\n\t") + "\n"
    assert acting(exact) == set()
    filled = CliRunner().invoke(app, ["fill-mask", str(encoder), "the <mask> sees", "--top", "300"]).stdout
    assert len(filled.splitlines()) > 250
    assert acting(filled) == set()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_lines_show_settings_and_reasons_with_escapes(is_terminal: bool) -> None:
    reason = re.sub(r"[\n\r]", "", NASTY)
    one = record(1, Outcome.FAILED).model_copy(update={"reason": reason, "settings": {"corpus.path": NASTY}})
    file = io.StringIO()
    console = Terminal(file=file, width=2000)
    console._force_terminal = is_terminal  # Rich's own argument, which no command needs.
    progress = Progress(console, lambda: [one], num_trials=1, tokens_per_trial=10, num_refused=lambda: 0)
    for event in (TrialEvent.STARTED, TrialEvent.ENDED):
        progress.on_event(event, one, None)
    started, *others = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()
    assert visible(NASTY) in started
    # Beside it a line tells the share of the sweep that is done.
    assert len([line for line in others if visible(reason) in line]) == 1
    assert len(others) == 2


def test_a_fault_of_ours_ends_in_a_traceback_without_acting_characters(tmp_path: Path) -> None:
    code = (
        "import sys; from sweeps.commands import cli\n"
        "@cli.app.command()\n"
        f"def broken() -> None: raise RuntimeError({NASTY!r})\n"
        "sys.argv = ['pretune', 'broken']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: [red]x[/red]" in done.stderr
    assert acting(done.stderr) == set()


# One way to the terminal.

PRINTERS = {
    "data_pipeline/schema/terminal_text.py": "echo",
    "sweeps/commands/terminal.py": "the console",
    "core/costs/lane_benchmark_worker.py": "a pipe to the process that started it",
    "core/doctor/all_reduce_worker.py": "a pipe to the process that started it",
    "core/memory/device_facts.py": "a pipe to the process that started it",
    "data_pipeline/tokens/template_rendering.py": "a pipe to the process that started it",
    "core/user_code/permitted_code.py": "a file of the user's code",
}
PRINTING = re.compile(
    r"print|pprint|((typer|click)\.)?(echo|secho|echo_via_pager|prompt|confirm|progressbar)|(\w+\.)*Console|rich\.\w+|"
    r"(sys\.)?(__)?(stdout|stderr)(__)?\.\w+|(\w+\.)*(from_markup|from_ansi|StreamHandler|print_exc|basicConfig)|"
    r"os\.write|(self\.)?_?console\.(file\.\w+|out|log|print_json|print_exception)|input"
)
READS = re.compile(r"sys\.(stdout|stderr)\.(isatty|flush)|input")
OURS = re.compile(r"from data_pipeline\.schema\.terminal_text import .*\becho\b")


def printing_calls(source: str) -> Iterator[str]:
    """Calls of a file that write to a terminal by another way than ours, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        markup = [
            word for word in node.keywords if word.arg in ("markup", "emoji") and ast.unparse(word.value) != "False"
        ]
        is_ours = name == "echo" and OURS.search(source)
        is_constant = name == "input" and ast.unparse(node.args[0]) in ("prompt", "''")
        if markup or (PRINTING.fullmatch(name) and not is_ours and not is_constant and not READS.fullmatch(name)):
            yield f"{node.lineno}: {ast.unparse(node)}"
        elif name == "warnings.warn" and "visible(" not in ast.unparse(node.args[0]):
            yield f"{node.lineno}: a warning without visible()"


def test_no_module_prints_but_through_the_terminal_and_echo() -> None:
    files = [path for package in ("data_pipeline", "core", "sweeps") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): list(printing_calls(path.read_text("utf-8"))) for path in files}
    assert len(files) > 200
    assert {name: calls for name, calls in found.items() if calls and name not in PRINTERS} == {}


@pytest.mark.parametrize(
    "call",
    ["print(x)", "typer.echo(x)", "sys.stderr.write(x)", "Console().print(x)", "rich.print(x)", "console.file.write(x)",
     "console.print(x, markup=True)", "Text.from_markup(x)", "warnings.warn(x)", "echo(x)", "traceback.print_exc()"],
)  # fmt: skip
def test_the_search_for_printing_finds_each_way_to_print(call: str) -> None:
    assert list(printing_calls(call))
