"""Talking with a model: by the chat template in its folder, to its end mark, as transformers does."""

import json
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from conversing import Turns, prepared_conversations
from core.distributed.workers import Workers
from core.model_files.checkpoint import MODEL_FILE, newest_checkpoint, restore_weights
from core.model_files.huggingface import export_huggingface
from core.models.model_factory import build_model
from core.settings.run_config import RunConfig
from core.training.training_run import run_training
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.tokenizer import train_tokenizer
from patience import HANGS_AFTER_S
from small_models import exported
from sweeps.commands.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

CONVERSATIONS: list[Turns] = [
    [("user", f"say {n}"), ("assistant", "yes!"), ("user", "again"), ("assistant", "no, no")] for n in range(30)
]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on conversations for some seconds, and ends its answers."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=300, special_tokens="minimind"), ["yes!", "no, no"])
    data = prepared_conversations(folder, CONVERSATIONS, tokenizer=tokenizer, sequence_length=128)
    run = RunConfig.model_validate(
        {
            "model": {"family": "decoder", "layers": 2, "width": 64, "heads": 4, "sequence_length": 128},
            "objective": "sft",
            "training": {
                "batch_size": 4,
                "micro_batch_size": 4,
                "learning_rate": 5e-3,
                "epochs": 20,
                "precision": "fp32",
            },
        }
    )
    end = run_training(
        run, data, workers=Workers(), folder=folder / "run", report=lambda _: True, evaluate_at_tokens=[]
    )
    assert end.outcome == "completed"
    # Of the answers alone, which are always the same: with the questions, that nobody can guess, it would be far more.
    assert end.metrics["holdout/loss_nats_per_token"] < 0.1
    model = build_model(run.model, data.vocabulary.size)
    checkpoint = newest_checkpoint(folder / "run")
    assert checkpoint is not None
    restore_weights(checkpoint / MODEL_FILE, model)
    template = data.manifest.chat_template
    export_huggingface(model, run.model, data.tokenizer_path, data.vocabulary, folder / "best", chat_template=template)
    return folder / "best"


def run(*arguments: object, fails: bool = False, typed: str = "") -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), input=typed)
    assert done.exit_code == (2 if fails else 0), done.output
    return done.output


def of_transformers(folder: Path, turns: Turns, *, max_new_tokens: int = 20) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in turns]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_a_question_is_answered_as_transformers_does_with_the_folders_template_and_ends_at_its_mark(
    talker: Path,
) -> None:
    answer = run("generate", talker, "say 3", "--max-new-tokens", 20)
    assert answer == of_transformers(talker, [("user", "say 3")]) + "\n"
    assert len(answer) < 10, "it never ended"
    told = [("system", "be kind"), ("user", "say 3")]
    with_system = run("generate", talker, "say 3", "--max-new-tokens", 20, "--system", "be kind")
    assert with_system == of_transformers(talker, told) + "\n"


def test_a_chat_goes_on_with_the_turns_before(talker: Path) -> None:
    typed = "say 3\n\n  again \n"
    first = of_transformers(talker, [("user", "say 3")])
    second = of_transformers(talker, [("user", "say 3"), ("assistant", first), ("user", "again")])
    assert run("generate", talker, "--chat", "--max-new-tokens", 20, typed=typed) == f"{first}\n{second}\n"
    assert (first, second) == ("yes!", "no, no"), "it has learnt that the second answer is another one"


def test_texts_of_a_file_are_answered_one_by_one(talker: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("say 1\n\nsay 7\n")
    printed = run("generate", talker, "--input", tmp_path / "prompts.txt", "--max-new-tokens", 20)
    answered = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [(one["text"], one["continuation"]) for one in answered] == [
        (f"say {n}", of_transformers(talker, [("user", f"say {n}")])) for n in (1, 7)
    ]


def test_plain_continues_the_text_itself(talker: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talker)
    model = AutoModelForCausalLM.from_pretrained(talker)
    inputs = tokenizer("<s>user\nsay", return_tensors="pt", add_special_tokens=False)
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    ours = run("generate", talker, "user\nsay", "--plain", "--max-new-tokens", 5)
    assert ours == tokenizer.decode(made, skip_special_tokens=True) + "\n"


def test_an_exported_copy_keeps_the_template(talker: Path, tmp_path: Path) -> None:
    run("export", talker, tmp_path / "copy")
    assert run("generate", tmp_path / "copy", "say 3") == run("generate", talker, "say 3")


def test_evaluation_of_conversations_counts_answers_alone(talker: Path) -> None:
    metrics = json.loads(run("evaluate", talker, "--corpus", talker.parent / "conversations.jsonl", "--json"))
    assert metrics["holdout/loss_nats_per_token"] < 0.1


def test_what_does_not_go_together_is_told(talker: Path, tmp_path: Path) -> None:
    without = exported(tmp_path, "decoder")
    assert "--chat needs a model that was trained on conversations" in run(
        "generate", without, "--chat", typed="hi\n", fails=True
    )
    assert "--system is a turn of a conversation" in run("generate", without, "x", "--system", "y", fails=True)
    assert "--chat reads the conversation from stdin" in run("generate", talker, "x", "--chat", fails=True)


@pytest.mark.long
def test_a_chat_is_refused_on_a_terminal_too_where_the_model_has_no_template(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps", "generate", str(exported(tmp_path, "decoder")), "--chat"]
    _, terminal = pty.openpty()
    done = subprocess.run(
        command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=HANGS_AFTER_S
    )
    assert done.returncode == 2
    assert "--chat needs a model that was trained on conversations" in " ".join(done.stderr.split())
