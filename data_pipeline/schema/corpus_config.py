"""Settings of a corpus: its files, its tokenizer, and how documents are packed into rows."""

import codecs
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from data_pipeline.schema.redaction import Sources, redact_url
from data_pipeline.schema.settings import Count, NumBytes, Settings, Share
from data_pipeline.schema.user_errors import InputFault

LONGEST_ROW_BYTES = 256 << 20
"""Default of corpus.longest_row."""


class CorpusError(InputFault):
    """A corpus cannot be prepared. The message is one paragraph: location, value, rule, remedy."""


class CorpusConfig(Settings):
    """Source of the documents, and the share of them that is held out."""

    path: Sources = None
    """File, folder, glob or URI of the corpus, or a list of them. Instead of builtin."""

    builtin: Literal["python-docs"] | None = None
    """A corpus that needs no file, instead of path. python-docs: the English prose that every CPython carries."""

    follow_links: bool = False
    """true: links in a folder or glob are followed, also to files and folders outside of it. false: only links of a
    folder to files inside it are read, and others are passed over and named. A file that path names itself is read."""

    text: str | None = None
    """Column or key that holds the text; with header: none the number of the column, from 1. null: the column called
    text, or the only one that can hold it. Plain text has no columns, so it is refused where a name is given."""

    format: Literal["auto", "jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"] = "auto"
    """Format of all files. auto: detected from the content of each file. A file whose name or content says JSON, CSV,
    Parquet or Arrow is never read as plain text, unless txt is given here."""

    delimiter: str | None = None
    """The character between the fields of a table, as a comma or a tab. null: detected for each file."""

    quote: str | None = None
    """The character around a field of a table that holds delimiters or line ends; "" for none. null: detected for each
    file, usually the double quote."""

    escape: str | None = None
    """The character in a table that makes the next one plain, as a backslash; "" for none. null: detected for each
    file, usually none."""

    header: Literal["auto", "first", "none"] = "auto"
    """Names of the columns of a table. first: its first row. none: it has no names, and text is the number of a column.
    auto: detected for each file."""

    documents: Literal["lines", "paragraphs", "files"] = "lines"
    """Unit of a plain text file that is one document: a line, a paragraph (text between empty lines) or the whole file.
    In other formats a row is a document."""

    encoding: str | None = None
    """Encoding of text files, by any name that Python knows, as utf-8, gb18030 or latin-1. null: detected for each
    file."""

    holdout: Share = 0.02
    """Share of documents that no trial trains on, chosen by a hash of their content; equal texts are on one side. A
    sweep needs a share above 0 and below 1. 1 % to 5 % is usual, and more for a corpus of a few megabytes."""

    max_rejected: Share = 0.05
    """Largest share of rows, or of files, that may be rejected; preparation stops with the reasons above it."""

    longest_row: NumBytes | None = None
    """Bytes of a row after decompression, from 1; a longer row is rejected. A file with documents: files is one row.
    null: 256 MiB. Reading takes some multiple of it in memory."""

    expands_to: NumBytes | None = None
    """Bytes that one compressed file may expand to, from 1; a file that expands to more is refused. null: the larger
    of 64 GiB and 200 times its compressed size. It guards against files made to exhaust memory and disk."""

    damaged: Literal["refuse", "keep_what_is_whole"] = "refuse"
    """Treatment of files of which a part cannot be read, such as a compressed file that is cut off. refuse: preparation
    stops, with the number of rows before the damage. keep_what_is_whole: these rows are used; the rest of the file
    counts as one rejected row."""

    drop_duplicates: bool = False
    """true: only the first of documents with equal text is used. Duplicates raise the loss on new text
    (arXiv:2107.06499)."""

    @property
    def longest_row_bytes(self) -> int:
        """`longest_row`, or its default."""
        return LONGEST_ROW_BYTES if self.longest_row is None else self.longest_row

    @field_validator("text", mode="before")
    @classmethod
    def _number_of_a_column(cls, text: Any) -> Any:
        return str(text) if isinstance(text, int) and not isinstance(text, bool) else text

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _is_one_character(cls, character: str | None, info: ValidationInfo) -> str | None:
        if character is None or (character == "" and info.field_name != "delimiter"):
            return character
        if len(character) != 1 or not character.isascii() or character in "\n\r\0":
            raise ValueError('not one ASCII character; give one that is no line end, for example "|" or "\\t"')
        return character

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError as cause:
                raise ValueError(
                    "not an encoding that Python knows; give one of its names, for example utf-8, gb18030, latin-1"
                ) from cause
        return encoding

    @model_validator(mode="after")
    def _dialect_is_possible(self) -> Self:
        given = [one for one in (self.delimiter, self.quote, self.escape) if one]
        if len(set(given)) < len(given):
            raise ValueError("delimiter, quote and escape of a table must be different characters; change one of them")
        if self.header == "none" and self.text is not None and not (self.text.isdecimal() and int(self.text) >= 1):
            raise ValueError(
                f"header: none gives the columns no names, so text: {self.text} is none of them; give the number of "
                "the column, from 1, for example text: 2"
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("a corpus needs exactly one source: give path, or builtin: python-docs, not both")
        return self


YOUNGER = ("follow_links", "delimiter", "quote", "escape", "header", "damaged")
"""Settings of a corpus that are younger than the first results: files of before do not have them, and at their defaults
they change no token."""


def corpus_at(path: str, **settings: Any) -> CorpusConfig:
    """The corpus at a path or URL that a command names.

    Args:
        settings: Other settings of the corpus.

    Raises:
        CorpusError: The URL holds a user or a password.
    """
    try:
        return CorpusConfig(path=path, **settings)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CorpusError(f"{redact_url(path)}: {rule}") from None


class TokenizerConfig(Settings):
    """The tokenizer: trained on the training split, or loaded from a file."""

    kind: Literal["byte-bpe", "wordpiece", "words", "file"] = "byte-bpe"
    """Kind of tokenizer. byte-bpe: byte-level BPE (GPT-2, RoBERTa). wordpiece: WordPiece (BERT). words: split on white
    space; two-byte hex words get all 65,536 ids where there is room. file: the tokenizer.json at path."""

    vocabulary: Count = 8192
    """Most entries of the vocabulary, special tokens included; not used for kind: file. Embeddings take vocabulary x
    width parameters, so small models do well with 4,000 to 16,000. Losses per token of different vocabularies do not
    compare."""

    min_frequency: Count = 2
    """Times that a merge or word must occur in the training text to be learnt. Not used for kind: file."""

    training_bytes: NumBytes = 128 * 2**20
    """Bytes of text that the tokenizer is trained on. A larger corpus gives a sample, chosen by hash. Not used for
    kind: file."""

    special_tokens: Literal["roberta", "minimind"] = "roberta"
    """Special tokens and their ids. roberta: <s> <pad> </s> <unk> <mask> are 0 to 4. minimind: <unk> <s> </s> are 0 to
    2; it has no mask, so it is for causal LMs. Not used for kind: file."""

    path: str | None = None
    """Path of a tokenizer.json; for kind: file, which needs it."""

    @model_validator(mode="after")
    def _path_belongs_to_file(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError(
                f"tokenizer.kind={self.kind} with tokenizer.path={self.path!r}: kind: file needs a path, and no other "
                "kind takes one; set both or neither"
            )
        if self.path is not None and Path(self.path).suffix != ".json":
            raise ValueError(
                f"tokenizer.path={self.path!r} does not end in .json; give a tokenizer.json of the tokenizers library"
            )
        return self


class PackingConfig(Settings):
    """Rules that turn documents into rows of equal length."""

    rows: Literal["packed", "one_per_row", "conversations"] = "packed"
    """Way in which documents fill rows. packed: one document after another; only the last row is padded. one_per_row: a
    document in each row, padded. conversations: as many whole conversations as a row holds, none of which sees another;
    the default with objective: sft."""

    too_long: Literal["split", "truncate"] = "split"
    """Treatment of documents longer than a row; one_per_row and conversations only. split: several rows; conversations
    are split behind answers. truncate: the rest is left out; conversations end with the last answer that fits."""

    attention: Literal["across_documents", "within_documents"] = "across_documents"
    """Tokens that a token may attend to; packed only. across_documents: its whole row. within_documents: its own
    document, whose positions begin at 0."""

    sequence_length: Count = Field(default=128, ge=8)
    """Tokens in a row, special tokens included. Leave it out of a sweep file: it equals model.sequence_length."""

    @property
    def confines_attention(self) -> bool:
        """True if a row may hold several documents and attention stays within each of them."""
        return self.rows == "conversations" or (self.rows == "packed" and self.attention == "within_documents")
