"""Files to a Ray Dataset of parcels: whole rows, a few megabytes together, that any task on any node can read."""

from dataclasses import dataclass

from data_pipeline.reading.file_formats import FileKind
from data_pipeline.schema.corpus_config import CorpusConfig
from data_pipeline.tokens.chat_template import OUR_CHAT, ChatTemplate

_SMALLEST_PARCEL_BYTES = 1 << 19
_LARGEST_PARCEL_BYTES = 1 << 20
_PARCELS_OF_A_CORPUS = 64


@dataclass(frozen=True)
class Corpus:
    """Files and how to read them."""

    config: CorpusConfig
    files: tuple[FileKind, ...]
    template: ChatTemplate = OUR_CHAT
    """Writes conversations."""

    @property
    def num_plain_bytes(self) -> int:
        """Bytes of text that reading goes through."""
        return sum(file.num_plain_bytes for file in self.files)

    @property
    def has_dialogues(self) -> bool:
        """Whether some file holds conversations, so that not every token is predicted."""
        return any(file.has_dialogues for file in self.files)

    @property
    def parcel_bytes(self) -> int:
        """Bytes of a parcel: small corpora still make enough parcels for many cores, large ones not too many files."""
        share = self.num_plain_bytes // _PARCELS_OF_A_CORPUS
        return min(max(share, _SMALLEST_PARCEL_BYTES), _LARGEST_PARCEL_BYTES)
