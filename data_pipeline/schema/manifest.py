"""Manifest of a prepared corpus: counts of its files, rows and tokens. Stored beside the blocks as manifest.json."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError, PackingConfig, TokenizerConfig
from data_pipeline.schema.redaction import RecordedPath, redact_urls

# Part of every fingerprint: raise it when the same settings begin to give other tokens, rows or files.
FORMAT_VERSION = 2

SplitName = Literal["train", "holdout"]


class Record(BaseModel):
    """Base of all records in a manifest: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileReport(Record):
    """One file of the corpus."""

    path: RecordedPath
    num_file_bytes: int
    """Size on disk, before decompression."""
    blake2b: str
    """Hash of the bytes on disk."""
    compression: str | None
    encoding: str | None
    """None: the format defines its own encoding (Parquet)."""
    encoding_note: str = ""
    """How the encoding was found."""
    format: str
    text_column: str | None = None
    """Column or key of the text; `conversations` and `alpaca` name the two dialogue formats."""
    rows_read: int = 0
    rows_kept: int = 0
    rows_rejected: int = 0
    num_blank_lines: int = 0
    """Blank lines between rows or at the end of the file; not counted as rows."""
    refused: str | None = None
    """Reason why no row of the file was read; the file then counts as one rejected row."""
    damage: str | None = None
    """Position and cause of damage behind which no row was read; the rest of the file counts as one rejected row."""
    notes: tuple[str, ...] = ()
    """Findings about the kept rows that reject none: a guessed encoding, tags, replaced characters."""


class PassedOver(Record):
    """A file in a corpus folder that is not read, and the reason."""

    path: RecordedPath
    why: str


class BlockReport(Record):
    """One Arrow file of token blocks."""

    name: str = Field(pattern=r"^[a-z0-9-]+\.arrow$")
    """File name, relative to the folder of the manifest."""
    num_documents: int
    num_tokens: int
    num_file_bytes: int
    blake2b: str


class SplitReport(Record):
    """The documents of the training split, or of the holdout."""

    num_documents: int
    num_tokens: int
    """Tokens of all documents before truncation, special tokens included."""
    num_text_bytes: int
    """UTF-8 bytes of their text."""
    num_unknown_tokens: int
    content_hash: str
    """Sum of the hashes of all documents; independent of their order and of the files that hold them."""
    blocks: tuple[BlockReport, ...]


class RowReport(Record):
    """The rows packed from one split."""

    num_rows: int
    num_tokens: int
    """Tokens in rows, padding not counted."""
    num_text_bytes: int
    """UTF-8 bytes of the text of these tokens; a truncated document counts in proportion to its kept tokens."""
    num_padding_tokens: int
    """Positions in rows that hold padding."""
    num_truncated_tokens: int
    """Tokens of documents that no row holds."""
    row_table: BlockReport | None = None
    """File with the start of each row. None: packed rows, whose starts follow from the sequence length."""
    num_answer_tokens: int | None = None
    """Conversations: tokens that are predicted, padding not counted."""
    num_split: int = 0
    """Conversations longer than a row, split after answers; later rows do not see earlier turns."""
    num_cut_answers: int = 0
    """Answers that do not fit in one row with their question and are cut at the end of the row."""
    num_lost_answers: int = 0
    """Answers in no row: the question alone fills a row, or truncation removed them."""


class TokenizerReport(Record):
    """Compression and speed of the tokenizer on this corpus."""

    vocabulary_size: int
    training_s: float | None
    """Wall-clock seconds; None: the tokenizer was loaded, not trained."""
    num_training_bytes: int | None
    """UTF-8 bytes of the text it was trained on."""
    bytes_per_token: float
    unknown_rate: float
    """Share of tokens that are the unknown token."""
    tokens_per_s: float
    """Encoding speed of all cores together, start-up not counted."""
    longest_token: str
    longest_token_bytes: int


class StreamReport(Record):
    """Counts of documents and tokens that are independent of packing."""

    files: tuple[FileReport, ...]
    rows_read: int
    """Rows of the corpus: kept + rejected."""
    rows_kept: int
    rows_rejected: int
    rows_duplicate: int
    """Kept rows that repeat an earlier text; with `corpus.drop_duplicates` no block holds them."""
    rejects: dict[str, int]
    """Number of rejected rows by reason."""
    tokenizer_report: TokenizerReport
    token_dtype: Literal["uint16", "uint32"]
    has_targets: bool
    """True for conversations: only the assistant's tokens are predicted."""
    chat_template: str | None = None
    """Conversations: Jinja source of the template that wrote them as texts."""
    splits: dict[SplitName, SplitReport]
    seconds: dict[str, float]
    """Wall-clock seconds of each phase."""


class Manifest(StreamReport):
    """The whole manifest: counts of the token stream, its rows, settings and library versions."""

    format_version: int
    fingerprint: str
    stream_fingerprint: str
    """Fingerprint of the tokens alone; corpora that differ only in packing share it."""
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig
    versions: dict[str, str]
    """Versions of the libraries that determine the tokens."""
    passed_over: tuple[PassedOver, ...]
    rows: dict[SplitName, RowReport]

    @model_validator(mode="before")
    @classmethod
    def _less_what_follows_from_the_rest(cls, data: Any) -> Any:
        """The data without its computed shares: they are written for human readers and recomputed on loading."""
        shares = ("padding_share", "truncated_share")
        return {key: value for key, value in data.items() if key not in shares} if isinstance(data, dict) else data

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version_without_secrets(cls, data: Any) -> Any:
        """The data with a redacted path. Earlier versions wrote user information, which `CorpusConfig` refuses."""
        corpus = data.get("corpus") if isinstance(data, dict) else None
        if not isinstance(corpus, dict):
            return data
        return {**data, "corpus": {**corpus, "path": redact_urls(corpus.get("path"))}}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def padding_share(self) -> float:
        """Share of the positions in all rows that hold padding, in [0, 1]."""
        positions = sum(rows.num_rows for rows in self.rows.values()) * self.packing.sequence_length
        return sum(rows.num_padding_tokens for rows in self.rows.values()) / max(positions, 1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def truncated_share(self) -> float:
        """Share of all tokens that no row holds, in [0, 1]."""
        tokens = sum(split.num_tokens for split in self.splits.values())
        return sum(rows.num_truncated_tokens for rows in self.rows.values()) / max(tokens, 1)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        CorpusError: manifest.json is missing, of another format version, or malformed.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise CorpusError(f"{folder} is not a prepared corpus: it has no manifest.json; prepare the corpus first")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as cause:
        raise CorpusError(
            f"{path} cannot be read as a manifest of format {FORMAT_VERSION}; prepare again. {cause}"
        ) from cause
