"""Prepared conversations, without Ray."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preparing import letter_tokenizer
from tokenizers import Tokenizer
from written_files import written

from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus

Turns = list[tuple[str, str]]


def conversation_lines(conversations: Sequence[Turns]) -> str:
    """A JSONL file of MiniMind's form."""
    rows = ([{"role": role, "content": content} for role, content in turns] for turns in conversations)
    return "".join(json.dumps({"conversations": row}, ensure_ascii=False) + "\n" for row in rows)


def prepared_conversations(
    folder: Path, conversations: Sequence[Turns], *, tokenizer: Tokenizer | None = None, **packing: Any
) -> PreparedCorpus:
    """The rows of these conversations; without a tokenizer given, a letter a token."""
    folder.mkdir(exist_ok=True)
    (tokenizer or letter_tokenizer()).save(str(folder / "tokenizer.json"))
    path = written(folder, conversation_lines(conversations), "conversations.jsonl")
    return prepare(
        CorpusConfig(path=str(path), holdout=0.2),
        TokenizerConfig(kind="file", path=str(folder / "tokenizer.json")),
        PackingConfig.model_validate({"rows": "conversations"} | packing),
        prepared_folder=folder / "prepared",
        run=for_each_parcel_here,
        wanted="conversations",
    )
