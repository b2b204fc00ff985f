import json
from pathlib import Path
from typing import Any

import pytest
from written_files import REAL_DATA, needs_real_data, read, written

QUESTION, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}


def rows(*conversations: Any) -> str:
    return "".join(json.dumps({"conversations": turns}) + "\n" for turns in conversations)


def test_only_the_assistants_words_and_their_end_mark_are_predicted(tmp_path: Path) -> None:
    found = read(written(tmp_path, rows([QUESTION, ANSWER, QUESTION, ANSWER])))
    (text,), (spans,) = found.texts, found.target_spans
    assert text == "<s>user\nwhy?</s>\n<s>assistant\nbecause</s>\n" * 1 + "<s>user\nwhy?</s>\n<s>assistant\nbecause</s>"
    assert [text[start:stop] for start, stop in spans] == ["because</s>", "because</s>"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "conversation without turns"),
        ("hello", "conversation without turns"),
        ({"role": "user"}, "conversation without turns"),
        (["hello", "hi"], "turn without role or content"),
        ([{"role": "user"}, ANSWER], "turn without role or content"),
        ([{"role": "user", "content": 7}, ANSWER], "turn without role or content"),
        ([{"role": "narrator", "content": "x"}, ANSWER], "turn of an unknown role"),
        ([{"role": "user", "content": " "}, ANSWER], "turn without text"),
        ([ANSWER, QUESTION], "turns do not alternate"),
        ([QUESTION, ANSWER, ANSWER], "turns do not alternate"),
        ([QUESTION], "conversation without an answer"),
        ([{"role": "system", "content": "be kind"}], "conversation without an answer"),
        (None, "no text key"),
    ],
)
def test_malformed_conversation_is_rejected_by_reason(tmp_path: Path, turns: Any, reason: str) -> None:
    found = read(written(tmp_path, rows([QUESTION, ANSWER], turns, [QUESTION, ANSWER])))
    assert (len(found.texts), found.rejects) == (2, [(2, reason)])


def test_last_question_without_answer_is_left_out(tmp_path: Path) -> None:
    found = read(written(tmp_path, rows([QUESTION, ANSWER, QUESTION])))
    assert found.texts == ["<s>user\nwhy?</s>\n<s>assistant\nbecause</s>"]


def test_sharegpt_names_mean_the_same(tmp_path: Path) -> None:
    named = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "because"}]
    assert read(written(tmp_path, rows(named))).texts == read(written(tmp_path, rows([QUESTION, ANSWER]), "b")).texts


@pytest.mark.parametrize("as_array", [False, True])
def test_alpaca_rows_become_dialogues(tmp_path: Path, as_array: bool) -> None:
    plain = {"instruction": "Name a bird", "input": "", "output": "wren"}
    with_input = {"instruction": "Translate", "input": "Vogel", "output": "bird", "history": [["hi", "hello"]]}
    broken = [{"instruction": "x", "input": "", "output": ""}, {"instruction": None, "output": "y"}]
    made = [plain, *broken, with_input]
    data = json.dumps(made, indent=1) if as_array else "\n".join(map(json.dumps, made))
    found = read(written(tmp_path, data))
    assert found.texts == [
        "<s>user\nName a bird</s>\n<s>assistant\nwren</s>",
        "<s>user\nhi</s>\n<s>assistant\nhello</s>\n<s>user\nTranslate\nVogel</s>\n<s>assistant\nbird</s>",
    ]
    assert [reason for _, reason in found.rejects] == ["conversation without an answer", "turn without role or content"]


def test_alpaca_rows_of_a_table_become_dialogues(tmp_path: Path) -> None:
    table = 'instruction,input,output\nName a bird,,wren\n"Translate,",Vogel,bird\nx,,\n'
    found = read(written(tmp_path, table))
    assert found.texts == [
        "<s>user\nName a bird</s>\n<s>assistant\nwren</s>",
        "<s>user\nTranslate,\nVogel</s>\n<s>assistant\nbird</s>",
    ]
    assert found.rejects == [(4, "conversation without an answer")]


WHOLE = {"instruction": "x", "input": "", "output": "y"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction": 7}, "turn without role or content"),
        ({"input": ["x"]}, "turn without role or content"),
        ({"output": None}, "turn without role or content"),
        ({"output": " "}, "conversation without an answer"),
        ({"instruction": " "}, "turn without text"),
        ({"history": "long"}, "turn without role or content"),
        ({"history": [["only a question"]]}, "turn without role or content"),
        ({"history": [["question", 7]]}, "turn without role or content"),
        ({"history": [["question", ""]]}, "turn without text"),
    ],
)
def test_malformed_alpaca_row_is_rejected_by_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    made = "\n".join(json.dumps(row) for row in (WHOLE, WHOLE | changes, WHOLE))
    found = read(written(tmp_path, made))
    assert (len(found.texts), found.rejects) == (2, [(2, reason)])


def test_alpaca_row_without_instruction_is_rejected(tmp_path: Path) -> None:
    made = "\n".join(json.dumps(row) for row in (WHOLE, {"output": "y"}, {"instruction": "x"}))
    assert read(written(tmp_path, made)).rejects == [(2, "no text key"), (3, "turn without role or content")]


@needs_real_data
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [("sft_zh/kdconv_conversations.jsonl", 900), ("sft_en/self_instruct_conversations.jsonl", 427)],
)
def test_every_real_dialogue_is_kept_or_rejected(name: str, num_rows: int) -> None:
    found = read(REAL_DATA / name)
    assert len(found.texts) + len(found.rejects) == num_rows
    assert len(found.texts) >= 0.95 * num_rows, found.rejects
