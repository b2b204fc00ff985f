"""Many texts asked of a model: those of a file, and those that somebody types."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from typer.testing import CliRunner

from command import ROOT
from patience import HANGS_AFTER_S
from small_models import exported
from sweeps.commands.cli import app

PROMPTS = ["the red cat", "a", "the old dog sees a"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("decoder"), "decoder")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("encoder"), "encoder")


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_every_prompt_of_a_file_is_continued_as_transformers_does(tmp_path: Path, decoder: Path) -> None:
    (tmp_path / "prompts.csv").write_text("\n".join(["id,text", *(f"{n},{text}" for n, text in enumerate(PROMPTS))]))
    run(
        "generate",
        decoder,
        "--input",
        tmp_path / "prompts.csv",
        "--output",
        tmp_path / "out.jsonl",
        "--max-new-tokens",
        9,
    )
    tokenizer, model = (auto.from_pretrained(decoder) for auto in (AutoTokenizer, AutoModelForCausalLM))
    expected = []
    for number, prompt in enumerate(PROMPTS):
        inputs = tokenizer(f"<s>{prompt}", return_tensors="pt", add_special_tokens=False)
        new = [
            model.generate(**inputs, max_new_tokens=9, do_sample=False, use_cache=uses_cache)[
                0, inputs["input_ids"].shape[1] :
            ]
            for uses_cache in (True, False)
        ]
        assert new[0].tolist() == new[1].tolist()
        expected.append(
            {"row": number, "text": prompt, "continuation": tokenizer.decode(new[0], skip_special_tokens=True)}
        )
    assert lines_of(tmp_path / "out.jsonl") == expected


def test_masks_of_a_file_are_filled_as_by_the_pipeline_and_what_cannot_be_says_why(
    tmp_path: Path, encoder: Path
) -> None:
    texts = ["the <mask> cat sees", "no mask here", "a <mask> house"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*texts, ""]))
    said = run("fill-mask", encoder, "--input", tmp_path / "texts.jsonl", "--output", tmp_path / "out.jsonl")
    found = lines_of(tmp_path / "out.jsonl")
    assert "2 rows have no answer" in said
    assert "has no <mask>" in str(found[1]["error"])
    assert found[3]["error"] == "empty text"
    fill = pipeline("fill-mask", model=str(encoder), tokenizer=str(encoder), top_k=5)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    for place in (0, 2):
        theirs = fill(texts[place])
        (mask,) = found[place]["masks"]  # type: ignore[misc]
        assert [one["token"] for one in mask] == [tokenizer.decode([one["token"]]) for one in theirs]
        assert [one["probability"] for one in mask] == pytest.approx([one["score"] for one in theirs], abs=1e-5)


@pytest.mark.long
def test_what_is_typed_on_a_terminal_is_answered_until_ctrl_d(encoder: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "fill-mask", str(encoder), "--top", "1"],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "dumb"},
    )
    os.close(theirs)
    typed = [b"the <mask> cat\n", b"no mask\n", b"a <mask> house\n", b"\x04"]
    said, num_prompts = b"", 0
    deadline = time.monotonic() + HANGS_AFTER_S
    while time.monotonic() < deadline and (not said or process.poll() is None):
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            said += os.read(ours, 4096)
        except OSError:
            break  # Linux reports the closed end of a terminal so.
        # As a person does: only what follows a prompt.
        while num_prompts < min(said.count(b"text> "), len(typed)):
            os.write(ours, typed[num_prompts])
            num_prompts += 1
    os.close(ours)
    if process.poll() is None and time.monotonic() >= deadline:
        process.kill()
    assert process.wait(timeout=HANGS_AFTER_S) == 0, said
    text = said.decode()
    assert text.count("mask 1 ") == 2, text
    assert "has no <mask>" in text
    assert "Traceback" not in text


def test_a_text_and_a_file_at_once_are_refused(tmp_path: Path, encoder: Path, decoder: Path) -> None:
    for command, model in (("fill-mask", encoder), ("generate", decoder)):
        done = CliRunner().invoke(app, [command, str(model), "the", "--input", str(tmp_path / "x.csv")])
        assert done.exit_code == 2
        assert "not both" in done.output
    assert "nothing to fill" in CliRunner().invoke(app, ["fill-mask", str(encoder)]).output
