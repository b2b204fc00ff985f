"""A prepared corpus of a few texts, without Ray."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from written_files import json_lines, written

from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def letter_tokenizer() -> Tokenizer:
    """A token a byte: what a row holds can be read off. Its own template puts <s> and </s> around each text."""
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({entry: n for n, entry in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def prepared_from_texts(
    folder: Path, texts: list[str], packing: PackingConfig, **settings: Any
) -> tuple[PreparedCorpus, list[list[int]]]:
    """The corpus of these texts, a letter a token, and each text as the tokenizers library itself encodes it."""
    tokenizer = letter_tokenizer()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    prepared = prepare(
        CorpusConfig(path=str(written(folder, json_lines(*texts), "corpus.jsonl")), **({"holdout": 0.3} | settings)),
        TokenizerConfig(kind="file", path=str(folder / "tokenizer.json")),
        packing,
        prepared_folder=folder / "prepared",
        run=for_each_parcel_here,
    )
    return prepared, [found.ids for found in tokenizer.encode_batch(texts)]
