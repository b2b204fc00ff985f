"""Fingerprint of a corpus: a short hash of everything that determines its tokens. Equal fingerprint, equal blocks."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers

from data_pipeline.reading.corpus import Corpus
from data_pipeline.schema.corpus_config import LONGEST_ROW_BYTES, PackingConfig, TokenizerConfig
from data_pipeline.schema.manifest import FORMAT_VERSION

_HEX_DIGITS = 16


def library_versions() -> dict[str, str]:
    """Versions of the libraries that determine the tokens."""
    return {"tokenizers": str(tokenizers.__version__)}


def stream_fingerprint(corpus: Corpus, tokenizer: TokenizerConfig) -> str:
    """Fingerprint of the documents and their tokens, independent of packing.

    Files enter by their bytes, not by their names. `max_rejected` and `expands_to` do not enter: they change no token
    of a file that is read.
    """
    files = [
        [
            file.blake2b,
            file.format,
            file.encoding.name,
            file.delimiter,
            file.columns,
            file.has_header,
            file.text_column,
            file.refused is None,
            # Only where they are unusual: the fingerprints of corpora prepared before stay valid.
            *([] if (file.quote, file.escape) == ('"', "") else [file.quote, file.escape]),
        ]
        for file in corpus.files
    ]
    settings = corpus.config.model_dump(include={"documents", "holdout", "drop_duplicates"})
    if corpus.config.longest_row_bytes != LONGEST_ROW_BYTES:
        # Only where it is set: the fingerprints of corpora prepared before stay valid.
        settings["longest_row"] = corpus.config.longest_row
    if corpus.has_dialogues:
        settings["template"] = asdict(corpus.template)
    learnt: dict[str, Any] = tokenizer.model_dump(exclude={"path"})
    if tokenizer.path is not None:
        learnt = {"file": hashlib.blake2b(Path(tokenizer.path).expanduser().read_bytes()).hexdigest()}
    return _short_hash([FORMAT_VERSION, library_versions(), files, settings, learnt])


def row_fingerprint(stream: str, packing: PackingConfig) -> str:
    """Fingerprint of the rows, which names the prepared folder.

    Args:
        stream: From `stream_fingerprint`.
    """
    return _short_hash([stream, packing.model_dump()])


def _short_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=_HEX_DIGITS // 2).hexdigest()
