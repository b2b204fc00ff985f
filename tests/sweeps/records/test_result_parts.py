from pathlib import Path

from sweeps.records.result_parts import ERRORS_FILE, FailedPart, ResultParts


def largest(numbers: list[int]) -> int:
    return max(numbers)


def test_a_part_that_fails_is_named_and_what_takes_its_place_is_returned(tmp_path: Path) -> None:
    parts = ResultParts(tmp_path)
    seen: list[FailedPart] = []

    def instead(failed: FailedPart) -> int:
        seen.append(failed)
        return -1

    assert parts.make("the table", lambda: largest([1, 2]), instead) == 2
    assert parts.make("the curve", lambda: largest([]), instead) == -1
    assert parts.failed == seen
    assert str(seen[0]).startswith("the curve could not be made: ValueError: max()")


def test_a_bug_is_named_as_one_with_the_log_that_holds_its_traceback(tmp_path: Path) -> None:
    parts = ResultParts(tmp_path)
    parts.attempt("the curve", lambda: print(largest([])))
    (failed,) = parts.failed
    assert f"(a bug in pretune: please report it with {tmp_path / ERRORS_FILE})" in str(failed)
    log = (tmp_path / ERRORS_FILE).read_text()
    assert log.startswith("the curve\nTraceback")
    assert "in largest" in log


def test_an_error_of_the_machine_is_no_bug(tmp_path: Path) -> None:
    parts = ResultParts(tmp_path)
    assert parts.make("trials.csv", lambda: (tmp_path / "away").read_text(), str).startswith("trials.csv could not")
    (failed,) = parts.failed
    assert "FileNotFoundError: [Errno 2] No such file" in str(failed)
    assert "bug" not in str(failed)


def test_a_log_that_cannot_be_written_loses_no_part(tmp_path: Path) -> None:
    parts = ResultParts(tmp_path / "away")
    assert parts.make("the curve", lambda: largest([]), lambda _: -1) == -1
    assert len(parts.failed) == 1
