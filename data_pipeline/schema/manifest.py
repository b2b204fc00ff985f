"""What is known of a prepared corpus: every file, every row, every token. Lies next to the blocks as manifest.json."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field, model_validator

from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig

# Part of every fingerprint: raise it when the same settings begin to give other tokens, rows or files.
FORMAT_VERSION = 2

SplitName = Literal["train", "holdout"]


class Record(BaseModel):
    """Base of everything in a manifest: frozen, and written as it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileReport(Record):
    """One file of the corpus."""

    path: str
    num_file_bytes: int
    """As it lies there, compressed if it is."""
    blake2b: str
    """Hash of those bytes."""
    compression: str | None
    encoding: str | None
    """None: the format has none of its own (Parquet)."""
    encoding_note: str = ""
    """How the encoding was found."""
    format: str
    text_column: str | None = None
    """Column or key that held the text; `conversations` and `alpaca` name the two forms of dialogue."""
    rows_read: int = 0
    rows_kept: int = 0
    rows_rejected: int = 0
    num_blank_lines: int = 0
    """Separate rows or stand at the end of a file; they are no rows."""
    refused: str | None = None
    """Why no row of the file was read; it then counts as one rejected row."""


class PassedOver(Record):
    """A file in a folder that is no part of the corpus."""

    path: str
    why: str


class BlockReport(Record):
    """One Arrow file of token blocks."""

    name: str
    """Relative to the folder of the manifest."""
    num_documents: int
    num_tokens: int
    num_file_bytes: int
    blake2b: str


class SplitReport(Record):
    """The documents of the training split, or of the holdout."""

    num_documents: int
    num_tokens: int
    """Tokens of all documents, special tokens included, nothing truncated."""
    num_text_bytes: int
    """UTF-8 bytes of their text."""
    num_unknown_tokens: int
    content_hash: str
    """Sum of the hashes of all documents: the same whatever their order, and however they are cut into files."""
    blocks: tuple[BlockReport, ...]


class RowReport(Record):
    """The rows that are made of a split."""

    num_rows: int
    num_tokens: int
    """Real tokens in rows."""
    num_text_bytes: int
    """Text bytes behind them; of a truncated document the same share as of its tokens."""
    num_padding_tokens: int
    """Places in rows that hold no token."""
    num_truncated_tokens: int
    """Tokens that are in no row."""
    row_table: BlockReport | None = None
    """Where rows start. Packed rows follow from the sequence length."""
    num_answer_tokens: int | None = None
    """Conversations: real tokens that are predicted."""
    num_split: int = 0
    """Conversations longer than a row, split behind answers; each goes on in rows that do not see what was before."""
    num_cut_answers: int = 0
    """Answers that a row could not hold with their question, cut at its end."""
    num_lost_answers: int = 0
    """Answers in no row: their question alone fills one, or the conversation was truncated before them."""


class TokenizerReport(Record):
    """How well and how fast the tokenizer does on this corpus."""

    vocabulary_size: int
    training_s: float | None
    """None: it was not trained here."""
    num_training_bytes: int | None
    """Text that it was trained on."""
    bytes_per_token: float
    unknown_rate: float
    """Share of tokens that are the unknown token."""
    tokens_per_s: float
    """While encoding, on all cores together, start-up not counted."""
    longest_token: str
    longest_token_bytes: int


class StreamReport(Record):
    """Everything about documents and tokens that does not depend on how rows are made of them."""

    files: tuple[FileReport, ...]
    rows_read: int
    """Rows of the corpus: kept + rejected."""
    rows_kept: int
    rows_rejected: int
    rows_duplicate: int
    """Kept rows whose text had been seen before; where the corpus asks for it, they are in no block."""
    rejects: dict[str, int]
    """Rejected rows by reason."""
    tokenizer_report: TokenizerReport
    token_dtype: Literal["uint16", "uint32"]
    has_targets: bool
    """Conversations: only the assistant's tokens are predicted."""
    chat_template: str | None = None
    """Conversations: what wrote them as texts, as Jinja."""
    splits: dict[SplitName, SplitReport]
    seconds: dict[str, float]
    """Wall-clock seconds of each phase."""


class Manifest(StreamReport):
    """Everything a table, a plot or a second preparation needs to know."""

    format_version: int
    fingerprint: str
    stream_fingerprint: str
    """Of the tokens alone; corpora that differ only in their rows share it."""
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig
    versions: dict[str, str]
    """Of the libraries that decide what tokens come out."""
    passed_over: tuple[PassedOver, ...]
    rows: dict[SplitName, RowReport]

    @model_validator(mode="before")
    @classmethod
    def _less_what_follows_from_the_rest(cls, data: Any) -> Any:
        """Shares are written for whoever reads the file, and computed again by whoever loads it."""
        shares = ("padding_share", "truncated_share")
        return {key: value for key, value in data.items() if key not in shares} if isinstance(data, dict) else data

    @computed_field  # type: ignore[prop-decorator]
    @property
    def padding_share(self) -> float:
        """Share of the places in all rows that hold no token."""
        places = sum(rows.num_rows for rows in self.rows.values()) * self.packing.sequence_length
        return sum(rows.num_padding_tokens for rows in self.rows.values()) / max(places, 1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def truncated_share(self) -> float:
        """Share of all tokens that are in no row."""
        tokens = sum(split.num_tokens for split in self.splits.values())
        return sum(rows.num_truncated_tokens for rows in self.rows.values()) / max(tokens, 1)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        ValueError: Missing, of another format version, or not one of ours.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a prepared corpus: it has no manifest.json")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValueError as cause:
        raise ValueError(
            f"{path} cannot be read as a manifest of format {FORMAT_VERSION}; prepare again. {cause}"
        ) from cause
