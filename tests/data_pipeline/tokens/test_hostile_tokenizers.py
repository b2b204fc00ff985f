"""tokenizer.json of strangers: each fault is an error of input that names the file, never a panic of the library."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.preparation.encode import encode_documents
from data_pipeline.preparation.labelled_rows import encode_texts
from data_pipeline.tokens.tokenizer import TokenizerFault, load_tokenizer, panics_explained, vocabulary_of


def _written(folder: Path, **parts: Any) -> Path:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "</s>": 1, "a": 2}, "unk_token": "<unk>"}
    names = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    whole = {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(names) | parts
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(whole))
    return path


def test_a_file_that_makes_the_library_panic_is_refused_with_its_path(tmp_path: Path) -> None:
    path = _written(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(
        TokenizerFault, match=rf"^{path} makes the tokenizers library fail \(.*charsmap.*\); repair its"
    ):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False},
        {"type": "FixedLength", "length": 0},
    ],
    ids=["an expression that gives up", "a length of zero"],
)
def test_a_text_that_makes_the_library_panic_gives_an_error_of_input(
    tmp_path: Path, pre_tokenizer: dict[str, Any]
) -> None:
    tokenizer, texts = load_tokenizer(_written(tmp_path, pre_tokenizer=pre_tokenizer)), ["a" * 30 + "!"]
    with pytest.raises(TokenizerFault, match="makes the tokenizers library fail"):
        encode_texts(texts, tokenizer, vocabulary_of(tokenizer), longest=8)
    with pytest.raises(TokenizerFault, match="makes the tokenizers library fail"):
        encode_documents(texts, [31], None, tokenizer, vocabulary_of(tokenizer))
    with pytest.raises(TokenizerFault, match="makes the tokenizers library fail"):
        encode_documents(texts, [31], [[(0, 1)]], tokenizer, vocabulary_of(tokenizer))


def test_ids_of_four_billion_are_refused_before_a_model_gets_that_many_rows(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "</s>": 4_294_967_295}
    path = _written(tmp_path, model={"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"})
    with pytest.raises(ValueError, match=r"has 2 tokens, and its largest id is 4,294,967,295: a model would need"):
        vocabulary_of(load_tokenizer(path))


def test_ids_with_some_gaps_are_accepted_as_published_models_have_them(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "</s>": 65_000}
    path = _written(tmp_path, model={"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"})
    assert vocabulary_of(load_tokenizer(path)).size == 65_001


def test_a_file_of_no_tokenizers_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(257 << 20)
    with pytest.raises(ValueError, match=r"is larger than 256 MiB, which no tokenizer\.json needs"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_other_errors_pass_as_they_are() -> None:
    for error in (KeyboardInterrupt(), ValueError("x")):
        with pytest.raises(type(error)), panics_explained():
            raise error
