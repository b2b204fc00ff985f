"""A corpus: its files, how to read them, and the size of its parcels.

A parcel is a group of whole rows, about a megabyte, that any task on any node can process.
"""

from dataclasses import dataclass

from data_pipeline.reading.file_formats import FileKind
from data_pipeline.schema.corpus_config import CorpusConfig
from data_pipeline.schema.manifest import PassedOver
from data_pipeline.tokens.chat_template import OUR_CHAT, ChatTemplate

_SMALLEST_PARCEL_BYTES = 1 << 19
_LARGEST_PARCEL_BYTES = 1 << 20
_PARCELS_OF_A_CORPUS = 64


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus and the settings for reading them."""

    config: CorpusConfig
    files: tuple[FileKind, ...]
    template: ChatTemplate = OUR_CHAT
    """Template that writes conversations as texts."""
    passed_over: tuple[PassedOver, ...] = ()
    """Files of its folders that are not read."""

    @property
    def num_plain_bytes(self) -> int:
        """Bytes of all files after decompression."""
        return sum(file.num_plain_bytes for file in self.files)

    @property
    def has_dialogues(self) -> bool:
        """True if a file holds conversations; then only answers are predicted."""
        return any(file.has_dialogues for file in self.files)

    @property
    def parcel_bytes(self) -> int:
        """Target size of a parcel in bytes.

        Small corpora still give enough parcels for many cores; large corpora do not give too many block files.
        """
        share = self.num_plain_bytes // _PARCELS_OF_A_CORPUS
        return min(max(share, _SMALLEST_PARCEL_BYTES), _LARGEST_PARCEL_BYTES)
