"""Settings of a corpus: its files, its tokenizer, and how documents are packed into rows."""

import codecs
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from data_pipeline.schema.settings import Count, NumBytes, Settings, Share
from data_pipeline.schema.user_errors import InputFault


class CorpusError(InputFault):
    """A corpus cannot be prepared. The message is one paragraph: location, value, rule, remedy."""


class CorpusConfig(Settings):
    """Source of the documents, and the share of them that is held out."""

    path: str | tuple[str, ...] | None = None
    """File, folder, glob, URI, or a list of them."""

    builtin: Literal["python-docs"] | None = None
    """A corpus that needs no file: the English prose that every CPython carries."""

    text: str | None = None
    """Column or key that holds the text. None: the column called text, or the only one that can be it."""

    format: Literal["auto", "jsonl", "json", "csv", "tsv", "txt", "parquet"] = "auto"
    """auto: told by the content of each file, not by its name."""

    documents: Literal["lines", "paragraphs", "files"] = "lines"
    """What a document of a plain text file is. Other formats: a row is a document."""

    encoding: str | None = None
    """Encoding of text files. None: detected for each file."""

    holdout: Share = 0.02
    """Share of documents held out, chosen by a hash of their content; equal texts stand on one side."""

    max_rejected: Share = 0.05
    """Preparation stops when a larger share of rows than this is rejected."""

    drop_duplicates: bool = False
    """Keep only the first of documents with equal text."""

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
    def _one_source(self) -> Self:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("a corpus needs exactly one source: give path, or builtin: python-docs, not both")
        return self


class TokenizerConfig(Settings):
    """The tokenizer: trained on the training split, or loaded from a file."""

    kind: Literal["byte-bpe", "wordpiece", "words", "file"] = "byte-bpe"
    """byte-bpe: byte-level BPE. words: split on white space; two-byte hex words get all 65,536 ids where there is room.
    file: a tokenizer.json at `path`."""

    vocabulary: Count = 8192
    """Upper bound of entries, special tokens included. Not used for kind: file."""

    min_frequency: Count = 2
    """A merge or word seen less often than this is not learnt."""

    training_bytes: NumBytes = 128 * 2**20
    """Text that the tokenizer is trained on: a sample, chosen by hash, of a corpus that has more."""

    special_tokens: Literal["roberta", "minimind"] = "roberta"
    """roberta: <s> <pad> </s> <unk> <mask> = 0..4 (system D). minimind: <unk> <s> </s> = 0..2 (system C); no mask."""

    path: str | None = None
    """tokenizer.json, for kind: file."""

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
    """packed: documents one after another, no padding but in the last row. one_per_row: padded. conversations: as many
    whole ones as a row holds, none of which sees another; a sweep file with objective: sft has this as its default."""

    too_long: Literal["split", "truncate"] = "split"
    """one_per_row, conversations: what becomes of a document longer than a row. Conversations are split behind answers,
    or end with the last answer that fits."""

    attention: Literal["across_documents", "within_documents"] = "across_documents"
    """packed: whether a token sees other documents of its row; within: positions restart at each document."""

    sequence_length: Count = Field(default=128, ge=8)
    """Tokens in a row, special tokens included. A sweep file says it as model.sequence_length."""

    @property
    def confines_attention(self) -> bool:
        """True if a row may hold several documents and attention stays within each of them."""
        return self.rows == "conversations" or (self.rows == "packed" and self.attention == "within_documents")
