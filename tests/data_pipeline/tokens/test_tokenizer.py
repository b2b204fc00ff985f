from pathlib import Path

import pytest
from preparing import letter_tokenizer
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from written_files import REAL_DATA, needs_real_data, read

from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.tokenizer import load_tokenizer, longest_token, train_tokenizer, vocabulary_of

TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "Ein Zwölfer, naïve!"] * 5


def test_special_tokens_of_kantaibert_have_its_ids() -> None:
    config = TokenizerConfig(kind="byte-bpe", vocabulary=52_000, min_frequency=2, special_tokens="roberta")
    tokenizer = train_tokenizer(config, TEXTS)
    assert [tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 4]
    found = vocabulary_of(tokenizer)
    assert (found.bos_id, found.pad_id, found.eos_id, found.unk_id, found.mask_id) == (0, 1, 2, 3, 4)
    assert found.special_ids == (0, 1, 2, 3, 4)
    assert 5 + 256 < found.size <= 52_000


def test_special_tokens_of_minimind_have_its_ids_and_no_space_is_put_before_the_first_word() -> None:
    config = TokenizerConfig(kind="byte-bpe", vocabulary=6400, special_tokens="minimind")
    tokenizer = train_tokenizer(config, TEXTS)
    assert [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    found = vocabulary_of(tokenizer)
    assert (found.unk_id, found.bos_id, found.eos_id, found.mask_id) == (0, 1, 2, None)
    # It has no pad token; as in MiniMind's own tokenizer_config, the unknown token pads.
    assert found.pad_id == 0
    assert tokenizer.decode(tokenizer.encode("the cat").ids) == "the cat"
    assert not tokenizer.encode("the cat").tokens[0].startswith("Ġ")


def real_or_made_texts() -> list[str]:
    return read(REAL_DATA / "kant/kant.txt").texts[:3000] if REAL_DATA.is_dir() else TEXTS * 20


def test_vocabulary_of_kantaibert_is_that_of_its_own_recipe() -> None:
    texts = real_or_made_texts()
    theirs = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    theirs.train_from_iterator(texts, vocab_size=1000, min_frequency=2, special_tokens=special, show_progress=False)
    ours = train_tokenizer(TokenizerConfig(vocabulary=1000, min_frequency=2), texts)
    assert ours.get_vocab() == theirs.get_vocab()
    assert [ours.encode(text).ids for text in texts[:200]] == [theirs.encode(text).ids for text in texts[:200]]


def test_vocabulary_of_minimind_is_that_of_its_own_recipe() -> None:
    texts = real_or_made_texts()
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    theirs.train_from_iterator(texts, trainer=trainer)
    ours = train_tokenizer(TokenizerConfig(vocabulary=1000, min_frequency=1, special_tokens="minimind"), texts)
    assert ours.get_vocab() == theirs.get_vocab()
    assert [ours.encode(text).ids for text in texts[:200]] == [theirs.encode(text).ids for text in texts[:200]]


@needs_real_data
@pytest.mark.slow
def test_minimind_vocabulary_is_full_on_its_own_kind_of_corpus() -> None:
    texts = read(REAL_DATA / "chinese/tf_docs_zh.jsonl").texts
    config = TokenizerConfig(kind="byte-bpe", vocabulary=6400, special_tokens="minimind")
    assert vocabulary_of(train_tokenizer(config, texts)).size == 6400


def test_hex_words_have_ids_that_do_not_depend_on_the_corpus() -> None:
    config = TokenizerConfig(kind="words", vocabulary=65_541)
    one = train_tokenizer(config, ["0000 ffff 4500 4500"])
    other = train_tokenizer(config, ["dead beef dead"])
    assert vocabulary_of(one).size == vocabulary_of(other).size == 65_541
    assert one.encode("0000 4500 ffff").ids == other.encode("0000 4500 ffff").ids == [5, 5 + 0x4500, 65_540]


def test_odd_last_byte_of_a_packet_is_unknown_and_costs_no_word_its_id() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocabulary=65_541), ["4500 0054 " * 100 + "0d"])
    assert tokenizer.encode("4500 0d").ids == [5 + 0x4500, 3]


def test_words_that_are_no_hex_are_learnt_by_frequency() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocabulary=7, min_frequency=2), TEXTS)
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)[5:] == ["the", "cat"]
    assert tokenizer.encode("the  cat\nflew").ids == [5, 6, 3]


def test_wordpiece_continues_words() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocabulary=60), TEXTS)
    assert vocabulary_of(tokenizer).mask_id == 4
    assert any(entry.startswith("##") for entry in tokenizer.get_vocab())
    assert 3 not in tokenizer.encode("the cat sat").ids


@pytest.mark.parametrize("kind", ["byte-bpe", "wordpiece", "words"])
def test_training_twice_gives_the_same_tokenizer(kind: str) -> None:
    config = TokenizerConfig(kind=kind, vocabulary=400)
    assert train_tokenizer(config, TEXTS).to_str() == train_tokenizer(config, TEXTS).to_str()


def test_special_tokens_written_out_in_the_text_are_special_tokens() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=400, special_tokens="minimind"), TEXTS)
    assert tokenizer.encode("<s>the cat</s>").ids[0] == 1
    assert tokenizer.encode("<s>the cat</s>").ids[-1] == 2


def test_any_tokenizer_json_is_taken_and_its_padding_and_truncation_are_not(tmp_path: Path) -> None:
    tokenizer = letter_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path / "tokenizer.json").encode("abcdef", add_special_tokens=False).ids) == 6


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json of the tokenizers library"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "missing.json")


def test_tokenizer_without_an_end_of_text_is_refused() -> None:
    tokenizer = letter_tokenizer()
    bare = type(tokenizer)(tokenizer.model)
    bare.model = type(tokenizer.model)({"a": 0}, [])
    with pytest.raises(ValueError, match="no token that ends a text"):
        vocabulary_of(bare)


def test_longest_token_is_said_in_bytes() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=500, special_tokens="minimind"), ["Zwölfer"] * 9)
    assert longest_token(tokenizer) == ("Zwölfer", 8)
