"""The members of an archive, each a file of the corpus, passed over, or refused by name."""

from collections.abc import Iterator
from dataclasses import replace

from data_pipeline.formats.archives import ArchiveEntry, DamagedArchiveError, Member, document_in_zip, entries_of
from data_pipeline.reading.archive_members import open_archive
from data_pipeline.reading.corpus_files import FoundFile, why_passed_over
from data_pipeline.reading.file_formats import FileKind
from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.manifest import PassedOver

_SEPARATOR = "!/"
"""Between the path of an archive and the name of a member, in the paths that reports show."""


def members_of(archive: FileKind) -> Iterator[FoundFile | PassedOver | FileKind]:
    """The members of an archive, and the archive itself as a refused file if it is no whole archive of files.

    Raises:
        CorpusError: There is no room to unpack it.
    """
    assert archive.archive is not None, "asked for archives only"
    entries: list[ArchiveEntry] = []
    refused = archive.damage
    try:
        with open_archive(archive.path, archive.compression, num_plain_bytes=archive.num_plain_bytes) as stream:
            for entry in entries_of(stream, archive.archive):
                entries.append(entry)
    except (DamagedArchiveError, EOFError) as cause:
        refused = f"{cause}; download or write it again"
    except CorpusError as cause:
        refused, entries = str(cause), []
    document = document_in_zip([entry.name for entry in entries]) if archive.archive == "zip" else None
    if document is not None:
        refused, entries = f"it is {document}; export its text as JSONL, CSV or plain text", []
    elif not entries and refused is None:
        refused = "it is an archive without files"
    if refused is not None:
        yield replace(archive, archive=None, refused=refused, damage=None)
    for entry in entries:
        yield _found(archive, entry)


def _found(archive: FileKind, entry: ArchiveEntry) -> FoundFile | PassedOver | FileKind:
    assert archive.archive is not None
    path = f"{archive.path}{_SEPARATOR}{entry.name}"
    is_no_file = entry.why_not is not None and entry.why_not.endswith("inside an archive")
    why = entry.why_not if is_no_file else why_passed_over(entry.name.removeprefix("./"), entry.num_bytes)
    if why is not None:
        return PassedOver(path=path, why=why)
    member = Member(archive.path, archive.archive, archive.compression, archive.num_plain_bytes, entry)
    if entry.why_not is not None:
        return replace(
            archive,
            path=path,
            archive=None,
            inside=member,
            refused=entry.why_not,
            num_file_bytes=entry.num_bytes,
            num_plain_bytes=entry.num_bytes,
        )
    # The hash of the archive is the version of each member.
    return FoundFile(path, entry.num_bytes, f"in {archive.blake2b}", inside=member)
