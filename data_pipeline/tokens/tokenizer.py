"""Train, load and describe tokenizers (`tokenizers.Tokenizer`); `Vocabulary` holds the properties that a model needs.

Special tokens written literally in the text ("<s>" in MiniMind's corpora) become special tokens, the default of the
tokenizers library.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.schema.user_errors import InputFault, first_line

# The order gives the ids 0, 1, 2 .. of published checkpoints of systems C and D.
SPECIAL_TOKENS = {
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "minimind": ("<unk>", "<s>", "</s>"),
}

_BOS = ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|im_start|>")
_EOS = ("</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")
_PAD = ("<pad>", "[PAD]", "<|pad|>")
_UNK = ("<unk>", "[UNK]", "<|unk|>")
MASK_TOKENS = ("<mask>", "[MASK]", "<|mask|>")
"""Names by which the mask token of a tokenizer is found."""

_HEX_WORD = re.compile(r"[0-9a-f]{4}")
_NUM_HEX_WORDS = 16**4
_MOSTLY = 0.99

_MOST_BYTES = 256 << 20
"""Largest tokenizer.json that is read; those of published models have up to 35 MB."""
_NUM_SPARE_IDS = 65_536
"""Ids that may be unused, beside as many as are used: published models leave some free for later tokens."""


class TokenizerFault(InputFault):
    """A tokenizer.json makes the tokenizers library fail."""


@dataclass(frozen=True)
class Vocabulary:
    """Size and special ids of a tokenizer."""

    size: int
    """Largest id + 1."""
    pad_id: int
    """Fills rows up. Without a pad token: the unknown token (as in MiniMind), else the end of text."""
    unk_id: int | None
    bos_id: int
    eos_id: int
    mask_id: int | None
    special_ids: tuple[int, ...]
    """Ids that are never masked and never drawn as replacements."""


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on `documents`. Deterministic: equal documents in equal order give an equal tokenizer.

    Raises:
        ValueError: `kind: file`, which is loaded instead.
    """
    if config.kind == "byte-bpe":
        return _train_byte_bpe(config, documents)
    if config.kind == "wordpiece":
        return _train_wordpiece(config, documents)
    if config.kind == "words":
        return _train_words(config, documents)
    raise ValueError(f"a tokenizer of kind {config.kind} is loaded from tokenizer.path, not trained")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, with padding and truncation off: packing makes the rows.

    Raises:
        ValueError: The file is missing or not a tokenizer.json.
    """
    if not path.is_file():
        raise ValueError(f"tokenizer {path} does not exist")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES >> 20} MiB, which no tokenizer.json needs")
    try:
        with panics_explained(str(path)):
            tokenizer = Tokenizer.from_file(str(path))
    except TokenizerFault:
        raise
    except Exception as cause:  # The library raises bare Exception.
        raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library: {cause}") from cause
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextmanager
def panics_explained(place: str = "tokenizer.json") -> Iterator[None]:
    """Turn a panic of the tokenizers library in the block into an error of input.

    Panics pass every `except Exception`. A regular expression that gives up on a text is one, for example.

    Raises:
        TokenizerFault: The library panicked.
    """
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise TokenizerFault(
            f"{place} makes the tokenizers library fail ({first_line(panic)}); repair its normalizer, pre_tokenizer or "
            "post_processor, or use another tokenizer"
        ) from panic


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Size and special ids of a tokenizer.

    Raises:
        ValueError: The tokenizer has no end-of-text token under any usual name, or its ids have huge gaps.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True)
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = {name: ids[name] for name in (*_BOS, *_EOS, *_PAD, *_UNK, *MASK_TOKENS) if name in ids}

    def first(names: tuple[str, ...]) -> int | None:
        return next((named[name] for name in names if name in named), None)

    size = max(ids.values(), default=-1) + 1
    if size > 2 * len(ids) + _NUM_SPARE_IDS:
        raise ValueError(
            f"the tokenizer has {len(ids):,} tokens, and its largest id is {size - 1:,}: a model would need {size:,} "
            "rows, nearly all unused; number the tokens of tokenizer.json without such gaps"
        )
    eos, unk, pad = first(_EOS), first(_UNK), first(_PAD)
    if eos is None:
        raise ValueError(f"the tokenizer has no token that ends a text; it needs one of {', '.join(_EOS)}")
    bos = first(_BOS)
    return Vocabulary(
        size=size,
        pad_id=pad if pad is not None else unk if unk is not None else eos,
        unk_id=unk,
        # As in GPT-2, one token both ends a text and begins the next.
        bos_id=eos if bos is None else bos,
        eos_id=eos,
        mask_id=first(MASK_TOKENS),
        special_ids=tuple(sorted({*special.values(), *named.values()})),
    )


def longest_token(tokenizer: Tokenizer) -> tuple[str, int]:
    """The longest entry of a vocabulary, special tokens excluded, and its length in bytes; ("", 0) if there is none."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    is_byte_level = "ByteLevel" in type(tokenizer.pre_tokenizer).__name__
    # Byte-level entries spell each byte as one character.
    sizes = {
        entry: len(entry) if is_byte_level else len(entry.encode())
        for entry in tokenizer.get_vocab(with_added_tokens=False)
        if entry not in special
    }
    if not sizes:
        return "", 0
    longest = max(sizes, key=lambda entry: (sizes[entry], entry))
    number = tokenizer.token_to_id(longest)
    assert number is not None
    shown = tokenizer.decode([number]) if is_byte_level else longest
    return shown, sizes[longest]


def _train_byte_bpe(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # No space before the first word: system C sets this, and D's ByteLevelBPETokenizer has the same default.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        min_frequency=config.min_frequency,
        special_tokens=_special_tokens(config),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_in_batches(documents), trainer)
    return tokenizer


def _train_wordpiece(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    texts = list(documents)
    # The trainer numbers "##a", "##b" .. in the order of a randomly seeded hash map and breaks ties by number, so each
    # training gives another vocabulary. Entries given beforehand keep their numbers.
    learner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    learner.normalizer, learner.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    special = SPECIAL_TOKENS[config.special_tokens]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary,
        min_frequency=config.min_frequency,
        special_tokens=[*special, *_continuations(tokenizer, texts)],
        show_progress=False,
    )
    learner.train_from_iterator(_in_batches(texts), trainer)
    tokenizer.model = models.WordPiece(learner.get_vocab(), unk_token="<unk>", max_input_chars_per_word=100)
    tokenizer.add_special_tokens(_special_tokens(config))
    return tokenizer


def _continuations(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """WordPiece entries ("##x") for all single characters inside words."""
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    assert normalizer is not None
    assert splitter is not None
    words = {word for text in texts for word in normalizer.normalize_str(text).split()}
    inside = {character for word in words for part, _ in splitter.pre_tokenize_str(word) for character in part[1:]}
    return [f"##{character}" for character in sorted(inside)]


def _train_words(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Words between white space. If nearly all are two-byte hex words and all 65,536 fit, all of them get an id.

    As in system A, ids then do not depend on the corpus, and a word that occurs only in the holdout is not unknown.
    "Nearly", because captures of odd length end in a one-byte word.
    """
    counts: dict[str, int] = {}
    for document in documents:
        for word in document.split():
            counts[word] = counts.get(word, 0) + 1
    special = SPECIAL_TOKENS[config.special_tokens]
    for token in special:
        counts.pop(token, None)
    num_hex = sum(count for word, count in counts.items() if _HEX_WORD.fullmatch(word))
    words: list[str] = list(special)
    has_room = config.vocabulary >= len(special) + _NUM_HEX_WORDS
    if has_room and counts and num_hex >= _MOSTLY * sum(counts.values()):
        words += [f"{number:04x}" for number in range(_NUM_HEX_WORDS)]
        counts = {word: count for word, count in counts.items() if not _HEX_WORD.fullmatch(word)}
    frequent = [word for word, count in counts.items() if count >= config.min_frequency]
    # The word breaks ties, so the order of documents does not matter.
    frequent.sort(key=lambda word: (-counts[word], word))
    words += frequent[: max(0, config.vocabulary - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_special_tokens(config))
    return tokenizer


def _special_tokens(config: TokenizerConfig) -> list[AddedToken]:
    # As in RoBERTa, the mask absorbs the space before it: a predicted word brings its own space.
    return [
        AddedToken(token, lstrip=token == "<mask>" and config.kind == "byte-bpe", normalized=False, special=True)
        for token in SPECIAL_TOKENS[config.special_tokens]
    ]


def _in_batches(documents: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    """Documents in lists of `size`: the trainer crosses from Python to Rust once per list."""
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
