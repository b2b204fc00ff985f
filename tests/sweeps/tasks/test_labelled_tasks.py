"""Rows of downstream tasks: every row counted, the same split always, no text on both sides, faults before training."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_packets import PROTOCOLS, write_packets

from data_pipeline.schema.user_errors import InputFault
from sweeps.settings.metric_config import TaskConfig
from sweeps.tasks.labelled_tasks import TaskTexts, _chosen, fingerprint_of, read_tasks


def written(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return str(path)


def task_of(path: Path | str, **settings: object) -> TaskTexts:
    (found,) = read_tasks([TaskConfig.model_validate({"name": "t", "path": str(path), "label": "label"} | settings)])
    return found


def test_every_row_of_a_file_is_used_rejected_of_a_small_class_or_not_needed(tmp_path: Path) -> None:
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(60)]
    path = written(tmp_path / "rows.csv", [*rows, ("without a label", ""), ("", "a"), ("alone", "c")])
    found = task_of(path, most_rows=20)
    assert (found.num_read, found.num_rejected, found.num_rare, len(found.texts)) == (63, 2, 1, 20)
    words = found.in_words()
    assert "20 of 63 rows used, 2 rejected, 1 of classes that are too small, 40 not needed" in words


def test_equal_texts_are_on_one_side_and_both_sides_have_every_class(tmp_path: Path) -> None:
    rows = [(f"text {number % 30}", "abc"[number % 3]) for number in range(90)]
    found = task_of(written(tmp_path / "rows.csv", rows))
    sides = {text: set() for text in found.texts}
    for text, side in zip(found.texts, found.is_test.tolist(), strict=True):
        sides[text].add(side)
    assert {len(seen) for seen in sides.values()} == {1}
    assert {*found.labels[found.is_test]} == {*found.labels[~found.is_test]} == {0, 1, 2}


def test_the_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(50)]
    one, other = (
        task_of(written(tmp_path / f"{name}.csv", ordered)) for name, ordered in (("one", rows), ("other", rows[::-1]))
    )
    assert {*np.array(one.texts)[one.is_test]} == {*np.array(other.texts)[other.is_test]}


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc")), min_size=60, max_size=120), st.integers(20, 50))
def test_a_choice_of_rows_keeps_the_share_of_each_class_to_a_row_and_two_texts_of_each(
    rows: list[tuple[int, str]], most: int
) -> None:
    from data_pipeline.preparation.labelled_rows import LabelledTexts

    found = LabelledTexts("label", texts=[f"text {text}" for text, _ in rows], labels=[label for _, label in rows])
    chosen = _chosen(found, most)
    assert len(chosen) == len({*chosen}) == min(most, len(rows))
    assert chosen == sorted(chosen)
    of_all, of_chosen = Counter(found.labels), Counter(found.labels[row] for row in chosen)
    for label, count in of_all.items():
        texts = {found.texts[row] for row in chosen if found.labels[row] == label}
        assert len(texts) >= min(2, len({text for text, other in rows if other == label}))
        # Each of the three classes may hold two rows beyond its share: those that it needs.
        assert abs(of_chosen[label] - most * count / len(rows)) <= 6


def test_all_rows_of_the_file_fit_the_probe_where_a_file_of_its_own_tests_it(tmp_path: Path) -> None:
    fits = written(tmp_path / "fits.csv", [(f"text {number}", "ab"[number % 2]) for number in range(40)])
    tests = written(tmp_path / "tests.csv", [("text 1", "b"), ("new", "a"), ("newer", "b"), ("newest", "a")])
    found = task_of(fits, test_path=tests)
    assert found.is_test.tolist() == [False] * 40 + [True] * 4
    assert found.num_in_both == 1
    assert "1 test rows have a text that also fits the linear probe" in found.in_words()


def test_a_class_that_only_the_test_rows_have_is_refused(tmp_path: Path) -> None:
    fits = written(tmp_path / "fits.csv", [(f"text {number}", "ab"[number % 2]) for number in range(40)])
    tests = written(tmp_path / "tests.csv", [("one", "a"), ("two", "a"), ("three", "z"), ("four", "z")])
    with pytest.raises(InputFault, match=r"test_path: the class 'z' .* is not in .*add rows of it there"):
        task_of(fits, test_path=tests)


def test_the_faults_of_all_tasks_are_told_at_once_with_the_settings_to_change(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", [(f"text {number}", "ab"[number % 2]) for number in range(40)])
    tasks = [
        TaskConfig(name="one", path=path, label="lable"),
        TaskConfig(name="two", path=str(tmp_path / "missing.csv"), label="label"),
    ]
    with pytest.raises(InputFault) as caught:
        read_tasks(tasks)
    first, second = str(caught.value).split("\n", 1)
    assert first.startswith("task one: ")
    assert "did you mean evaluation.tasks.0.label: label?" in first
    assert second.startswith("task two: ")
    assert "missing.csv" in second


def test_another_text_label_or_split_is_other_data(tmp_path: Path) -> None:
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(40)]
    path = written(tmp_path / "rows.csv", rows)
    relabelled = written(tmp_path / "relabelled.csv", [(rows[0][0], "b"), *rows[1:]])
    retold = written(tmp_path / "retold.csv", [("another", rows[0][1]), *rows[1:]])
    found = [task_of(path), task_of(relabelled), task_of(retold), task_of(path, holdout=0.5)]
    assert len({fingerprint_of([one]) for one in found}) == 4
    assert fingerprint_of([task_of(path)]) == fingerprint_of([task_of(path)])
    assert fingerprint_of([]) == ""


def test_the_packets_of_the_tests_are_read_with_all_their_protocols(tmp_path: Path) -> None:
    found = task_of(write_packets(tmp_path / "packets.csv", 90), label="protocol")
    assert found.classes == PROTOCOLS
    assert found.num_rejected == 0
