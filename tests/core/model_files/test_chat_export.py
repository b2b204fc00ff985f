"""The chat template in a model's folder: transformers writes, tokenizes and marks conversations as training does."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from conversing import Turns, prepared_conversations
from core.model_files.huggingface import export_huggingface
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.chat_template import OURS, SETTINGS_FILE, TEMPLATE_FILE
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import train_tokenizer
from small_models import TEXTS

CONVERSATIONS: list[Turns] = [
    [("user", "what does the red cat see?"), ("assistant", "a red house")],
    [("system", " be brief\n"), ("user", "and the dog?\n\nsay it"), ("assistant", "\n\n an old one ")],
    [
        ("user", "多少"),
        ("assistant", "三 <3"),
        ("user", "x" * 40),
        ("assistant", "y\n\ny"),
        ("user", "?"),
        ("assistant", "!"),
    ],
    [("user", "def f():\n    return 1"), ("assistant", "    an indented answer\n\tand a tab")],
]
# As many instruct models have it; without `generation`, which most leave out.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def exported(data: PreparedCorpus, folder: Path) -> PreTrainedTokenizerFast:
    config = ModelConfig(family="decoder", layers=1, width=16, heads=2, sequence_length=256)
    torch.manual_seed(0)
    model = build_model(config, data.vocabulary.size)
    template = data.manifest.chat_template
    export_huggingface(model, config, data.tokenizer_path, data.vocabulary, folder, chat_template=template)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def trained_on(data: PreparedCorpus) -> set[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Each conversation as (tokens, which of them are predicted)."""
    found = set()
    for blocks in (data.train, data.holdout):
        for number in range(blocks.num_rows):
            rows = blocks.rows([number])  # type: ignore[arg-type]
            assert rows.is_target is not None
            count = int(rows.num_tokens[0])
            found.add((tuple(rows.tokens[0, :count].tolist()), tuple(rows.is_target[0, :count].tolist())))
    return found


def messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("special", ["minimind", "roberta"])
def test_transformers_gives_the_ids_and_the_mask_of_the_assistant_that_training_has(
    special: str, tmp_path: Path
) -> None:
    config = TokenizerConfig.model_validate({"vocabulary": 300, "min_frequency": 1, "special_tokens": special})
    data = prepared_conversations(
        tmp_path, CONVERSATIONS, tokenizer=train_tokenizer(config, TEXTS), rows="one_per_row", sequence_length=256
    )
    assert data.manifest.chat_template == OURS
    tokenizer = exported(data, tmp_path / "best")
    theirs = set()
    for turns in CONVERSATIONS:
        made = tokenizer.apply_chat_template(
            messages(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        theirs.add((tuple(made["input_ids"]), tuple(map(bool, made["assistant_masks"]))))
    assert trained_on(data) == theirs


def test_a_prompt_is_the_beginning_of_what_training_has_seen(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=300, min_frequency=1), TEXTS)
    data = prepared_conversations(tmp_path, CONVERSATIONS, tokenizer=tokenizer, rows="one_per_row", sequence_length=256)
    theirs = exported(data, tmp_path / "best")
    seen = {tokens for tokens, _ in trained_on(data)}
    for turns in CONVERSATIONS:
        prompt = theirs.apply_chat_template(
            messages(turns[:-1]), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert any(tokens[: len(prompt)] == tuple(prompt) for tokens in seen)


def test_the_template_lies_where_old_and_new_versions_look_and_nothing_of_it_without_conversations(
    tmp_path: Path,
) -> None:
    data = prepared_conversations(tmp_path, CONVERSATIONS, sequence_length=256)
    exported(data, tmp_path / "best")
    assert (tmp_path / "best" / TEMPLATE_FILE).read_text() == OURS
    assert json.loads((tmp_path / "best" / SETTINGS_FILE).read_text())["chat_template"] == OURS
    config = ModelConfig(family="decoder", layers=1, width=16, heads=2, sequence_length=256)
    model = build_model(config, data.vocabulary.size)
    export_huggingface(model, config, data.tokenizer_path, data.vocabulary, tmp_path / "plain")
    assert not (tmp_path / "plain" / TEMPLATE_FILE).exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template is None


def with_template_of_its_own(folder: Path) -> Tokenizer:
    """A tokenizer whose folder has another template, with other marks, as one downloaded has."""
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=300, min_frequency=1), TEXTS)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    ).save_pretrained(folder)
    return tokenizer


def test_a_model_that_comes_with_a_template_keeps_it_and_ends_answers_with_its_mark(tmp_path: Path) -> None:
    tokenizer = with_template_of_its_own(tmp_path / "llama")
    data = prepared_conversations(tmp_path / "made", CONVERSATIONS, sequence_length=256)  # only for the file
    data = prepare(
        CorpusConfig(path=str(tmp_path / "made" / "conversations.jsonl"), holdout=0.2),
        TokenizerConfig(kind="file", path=str(tmp_path / "llama" / "tokenizer.json")),
        PackingConfig(rows="one_per_row", sequence_length=256),
        prepared_folder=tmp_path / "prepared",
        run=for_each_parcel_here,
    )
    assert data.manifest.chat_template == CHATML
    theirs = exported(data, tmp_path / "best")
    end = tokenizer.token_to_id("<|im_end|>")
    trained = trained_on(data)
    for turns in CONVERSATIONS:
        ids = tuple(theirs.apply_chat_template(messages(turns), tokenize=True, return_dict=False))
        is_target = next(is_target for tokens, is_target in trained if tokens == ids)
        ends = [place for place, token in enumerate(ids) if token == end and is_target[place]]
        assert len(ends) == sum(role == "assistant" for role, _ in turns)
        prompt = theirs.apply_chat_template(
            messages(turns[:-1]), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        last = turns[-1][1]
        # Behind the prompt of the last answer comes its content, its end mark, and a line feed that nobody predicts.
        rest = [token for place, token in enumerate(ids) if place >= len(prompt)]
        assert is_target[len(prompt) :] == (True,) * (len(rest) - 1) + (False,)
        assert theirs.decode(rest[:-2]) == last
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    assert set(model.generation_config.eos_token_id) == {tokenizer.token_to_id("</s>"), end}
