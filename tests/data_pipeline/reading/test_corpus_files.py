from pathlib import Path

import fsspec
import pytest
from written_files import json_lines, read, written

from data_pipeline.preparation.corpus_check import check
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError


def found(*paths: str) -> list[str]:
    return [Path(file.path).name for file in find_files(CorpusConfig(path=paths)).files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        written(tmp_path, json_lines(name), name)
    return tmp_path


def test_folder_is_read_with_its_subfolders_in_the_order_of_paths(folder: Path) -> None:
    assert found(str(folder)) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_order_in_which_files_are_named_does_not_matter(folder: Path) -> None:
    a, b = str(folder / "a.jsonl"), str(folder / "b.jsonl")
    assert found(a, b) == found(b, a) == found(b, a, a)


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl", "?.jsonl", "[ab].jsonl"])
def test_globs_are_expanded(folder: Path, pattern: str) -> None:
    assert "a.jsonl" in found(str(folder / pattern))


def test_glob_passes_over_what_a_folder_would(folder: Path) -> None:
    for name in ("README.md", "a.jsonl~", "empty.jsonl"):
        written(folder, "" if name.startswith("empty") else "no corpus", name)
    files = find_files(CorpusConfig(path=str(folder / "*")))
    assert [Path(file.path).name for file in files.files] == ["a.jsonl", "b.jsonl"]
    assert [Path(item.path).name for item in files.passed_over] == ["README.md", "a.jsonl~", "empty.jsonl"]
    assert found(str(folder / "README*")) == ["README.md"]


@pytest.fixture
def linked(folder: Path) -> Path:
    """A corpus with links to a file inside, to a file and a folder outside, and to itself."""
    corpus = folder / "linked"
    written(folder, json_lines("private"), "outside/diary.jsonl")
    for name in ("a.jsonl", "sub/b.jsonl"):
        written(corpus, json_lines(name), name)
    links = {"again.jsonl": "a.jsonl", "x.jsonl": "../outside/diary.jsonl", "y": "../outside", "z": ".", "zsub": "sub"}
    for name, target in links.items():
        (corpus / name).symlink_to(target)
    return corpus


def test_links_that_leave_a_folder_are_passed_over_by_name_and_links_inside_it_are_read(linked: Path) -> None:
    files = find_files(CorpusConfig(path=str(linked)))
    assert [Path(file.path).name for file in files.files] == ["a.jsonl", "again.jsonl", "b.jsonl"]
    leaves = "a link that leaves the folder; corpus.follow_links: true reads it"
    itself = "a link to a folder that is read itself"
    assert {Path(item.path).name: item.why for item in files.passed_over} == {
        "x.jsonl": leaves,
        "y": leaves,
        "z": itself,
        "zsub": itself,
    }


def test_follow_links_reads_files_and_folders_outside_once_and_ends_in_circles(linked: Path) -> None:
    (linked.parent / "outside" / "back").symlink_to(linked)
    (linked.parent / "outside" / "round").symlink_to(".")
    files = find_files(CorpusConfig(path=str(linked), follow_links=True))
    names = [str(Path(file.path).relative_to(linked)) for file in files.files]
    assert names == ["a.jsonl", "again.jsonl", "sub/b.jsonl", "x.jsonl", "y/diary.jsonl"]


def test_a_glob_reads_links_only_with_follow_links_and_a_link_that_path_names_is_always_read(linked: Path) -> None:
    assert found(str(linked / "*.jsonl")) == ["a.jsonl"]
    followed = find_files(CorpusConfig(path=str(linked / "*.jsonl"), follow_links=True))
    assert [Path(file.path).name for file in followed.files] == ["a.jsonl", "again.jsonl", "x.jsonl"]
    assert found(str(linked / "x.jsonl")) == ["x.jsonl"]
    whole = find_files(CorpusConfig(path=str(linked / "y")))
    assert [Path(file.path).name for file in whole.files] == ["diary.jsonl"]


def test_file_uri_is_the_file(folder: Path) -> None:
    assert read(folder / "a.jsonl").texts == ["a.jsonl"]
    assert found(f"file://{folder}/a.jsonl") == ["a.jsonl"]


def test_store_of_fsspec_is_read() -> None:
    with fsspec.open("memory://corpus/rows.jsonl", "wb") as file:
        file.write(json_lines("from far away", "and another").encode())
    report = check(CorpusConfig(path="memory://corpus"))
    assert (report.rows_kept, report.files[0].path) == (2, "memory:///corpus/rows.jsonl")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".hidden.jsonl", "hidden"),
        (".git/config", "hidden"),
        ("README.md", "a README"),
        ("a.jsonl~", "an editor's backup"),
        ("#a.jsonl#", "an editor's backup"),
        ("a.jsonl.bak", "a backup"),
        (".a.jsonl.swp", "hidden"),
        ("_SUCCESS", "a marker of another program"),
        ("SHA256SUMS", "a checksum"),
    ],
)
def test_what_is_no_corpus_is_passed_over_and_named(folder: Path, name: str, why: str) -> None:
    written(folder, "not for reading", name)
    files = find_files(CorpusConfig(path=str(folder)))
    assert [(Path(item.path).name, item.why) for item in files.passed_over] == [(Path(name).name, why)]
    assert len(files.files) == 3


def test_file_that_is_named_itself_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a line\nanother", "README.md")).texts == ["a line", "another"]


def test_missing_path_suggests_its_neighbour(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.json does not exist; did you mean .*a\.jsonl"):
        find_files(CorpusConfig(path=str(folder / "a.json")))


def test_empty_folder_says_what_was_passed_over(tmp_path: Path) -> None:
    written(tmp_path, "x", "README.md")
    with pytest.raises(CorpusError, match=r"nothing to read in .*passed over: README\.md \(a README\)"):
        find_files(CorpusConfig(path=str(tmp_path)))


def test_unknown_store_is_named() -> None:
    with pytest.raises(CorpusError, match="nonsense://somewhere"):
        find_files(CorpusConfig(path="nonsense://somewhere"))


def test_check_counts_every_row_and_writes_nothing(folder: Path) -> None:
    written(folder, json_lines("good") + "{broken\n" + '{"text": 5}\n' + json_lines("good", "good"), "d.jsonl")
    before = sorted(folder.rglob("*"))
    report = check(CorpusConfig(path=str(folder), max_rejected="10%"))
    assert (report.rows_read, report.rows_kept, report.rows_rejected) == (8, 6, 2)
    assert report.rejects == {"malformed JSON": 1, "text is not a string": 1}
    assert [reject["line"] for reject in report.first_rejects] == [2, 3]
    assert report.problem is not None
    assert "2 of 8 rows" in report.problem
    assert sorted(folder.rglob("*")) == before


def test_refused_file_is_one_reject_that_says_why(folder: Path) -> None:
    written(folder, bytes(5000), "e.bin")
    report = check(CorpusConfig(path=str(folder), max_rejected=1.0))
    assert report.rejects == {"whole file refused": 1}
    assert report.first_rejects[0]["excerpt"].startswith("it is neither text nor Parquet")
    assert report.rows_read == 4


def test_refused_file_counts_by_its_bytes_and_is_named_with_its_reason(folder: Path) -> None:
    written(folder, bytes(5000), "e.bin")
    problem = check(CorpusConfig(path=str(folder), max_rejected="50%")).problem
    assert problem is not None
    assert "1 of 4 files cannot be read, 98.7% of the corpus" in problem
    assert "e.bin: it is neither text nor Parquet" in problem
