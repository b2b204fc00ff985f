"""Commands that pretune prints: each, given to a shell as printed, asks for the same again.

They are parsed by the parser of the command line itself, from folders with a space, an umlaut and a quote.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sweep_examples import record, tiny_sweep
from sweeps.commands.cli import app
from sweeps.commands.explanations import print_key
from sweeps.commands.terminal import Terminal
from sweeps.execution.changed_sweep import begin
from sweeps.records.printed_commands import command_line, default_results
from sweeps.records.results_folder import SweepFolder, sweep_identity
from sweeps.records.trial_records import TrialStore
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_file import load_sweep_file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder as people name theirs."""
    path = tmp_path / "größte Läufe, Anna's"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.delenv("PRETUNE_RESULTS", raising=False)
    return path


def parsed(line: str) -> dict[str, Any]:
    """Arguments with which a shell, given this line, starts a command of pretune."""
    program, name, *arguments = shlex.split(line)
    assert program == "pretune"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return dict(command.make_context(name, arguments).params)


def commands_in(text: str) -> list[str]:
    return re.findall(r"pretune (?:new|plan|sweep|train|ui|report) .*|pretune ui", text)


def test_a_path_with_spaces_quotes_and_umlauts_is_one_argument(folder: Path) -> None:
    results = folder / "große Platte"
    read = parsed(command_line("sweep", folder / "mein Sweep.yaml", "--set", "name=a b", results=results))
    assert read["file"] == folder / "mein Sweep.yaml"
    assert read["overrides"] == ["name=a b"]
    assert read["results"] == str(results)


@pytest.mark.parametrize(
    ("variable", "results", "is_said"),
    [
        (None, "results", False),
        (None, "other", True),
        ("other", "other", False),
        ("other", "results", True),
        ("s3://bucket/results", "s3://bucket/results", False),
        ("s3://bucket/results", "results", True),
        (None, "s3://bucket/results", True),
    ],
)
def test_the_results_folder_is_printed_where_it_is_not_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, results: str, is_said: bool
) -> None:
    if variable is not None:
        monkeypatch.setenv("PRETUNE_RESULTS", variable)
    for given in (results, results if "://" in results else Path(results).absolute()):
        read = parsed(command_line("ui", results=given))
        assert (read["results"] is not None) == is_said
        meant = read["results"] or default_results()
        assert meant == results or Path(meant).absolute() == Path(results).absolute()


def test_the_command_after_new_plans_the_file_that_new_wrote(folder: Path) -> None:
    (folder / "corpus.txt").write_text("\n".join(f"line {number} of the corpus" for number in range(300)))
    made = CliRunner().invoke(app, ["new", "corpus.txt", "--output", "mein Sweep.yaml"])
    assert made.exit_code == 0, made.output
    (line,) = commands_in(made.output.splitlines()[-1])
    read = parsed(line)
    assert load_sweep_file(read["file"]).search


def test_the_command_that_resumes_an_earlier_sweep_names_its_file_and_its_results_folder(folder: Path) -> None:
    results = folder / "große Platte"
    earlier, now = tiny_sweep(), tiny_sweep("budget.trials=7")
    of_earlier = SweepFolder(results, earlier, sweep_identity(earlier, "0123"))
    of_earlier.create()
    TrialStore(of_earlier.trials).save(record(1, loss=5.0))
    said: list[str] = []
    of_now = SweepFolder(results, now, sweep_identity(now, "0123"))
    of_now.create()
    begin(of_now, now, "0123", TrialStore(of_now.trials), results=results, say=said.append)
    (line,) = commands_in("\n".join(said))
    read = parsed(line)
    resumed = load_sweep_file(read["file"], read["overrides"] or ())
    again = SweepFolder(Path(read["results"]), resumed, sweep_identity(resumed, "0123"))
    assert again.path == of_earlier.path


def test_a_setting_that_a_fault_tells_to_explain_is_explained(folder: Path) -> None:
    file = folder / "bad.yaml"
    file.write_text(
        "name: bad\ncorpus: {builtin: python-docs, holdout: []}\nmodel: {family: encoder, layers: 2}\n"
        "objective: {masked_lm: {}}\nresources: {memory: []}\nmlm: {}\nbudget: {trials: []}\n"
    )
    with pytest.raises(SettingsFileError) as caught:
        load_sweep_file(file)
    told = re.findall(r"`(pretune explain .*?)`", str(caught.value))
    assert len(told) > 1, str(caught.value)
    for line in told:
        print_key(parsed(line)["key"], Terminal())
