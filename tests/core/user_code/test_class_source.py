"""A class is found by its name, and nothing of it is run."""

from pathlib import Path

import pytest

from core.user_code.class_source import CodeNotFoundError, code_of_json, find_code

RUNS = 'raise RuntimeError("this module was run")\n'


def package(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_finding_a_class_runs_nothing_of_its_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RUNS + "class Mine: pass\n")
    code = find_code("mine.py:Mine", [tmp_path])
    assert code.files == (("mine.py", RUNS + "class Mine: pass\n"),)


def test_a_module_comes_with_its_whole_package(tmp_path: Path) -> None:
    package(tmp_path / "my_models", mixers="class Mine: pass\n", parts="WIDTH = 3\n")
    code = find_code("my_models.mixers:Mine", [tmp_path])
    assert [name for name, _ in code.files] == ["my_models/__init__.py", "my_models/mixers.py", "my_models/parts.py"]


def test_the_digest_changes_with_any_file_of_the_package_and_not_with_the_folder(tmp_path: Path) -> None:
    for place in ("here", "there"):
        package(tmp_path / place / "my_models", mixers="class Mine: pass\n", parts="WIDTH = 3\n")
    here, there = (find_code("my_models.mixers:Mine", [tmp_path / place]) for place in ("here", "there"))
    assert here.digest == there.digest
    (tmp_path / "there/my_models/parts.py").write_text("WIDTH = 4\n")
    assert find_code("my_models.mixers:Mine", [tmp_path / "there"]).digest != here.digest


def test_the_folder_of_the_file_comes_before_the_current_one(tmp_path: Path) -> None:
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(f"class Mine: pass  # {place}\n")
    code = find_code("mine:Mine", [tmp_path / "first", tmp_path / "second"])
    assert "first" in code.files[0][1]


def test_a_class_of_an_installed_package_is_found(tmp_path: Path) -> None:
    code = find_code("torch.nn.modules.linear:Linear", [tmp_path])
    assert code.is_installed
    assert "class Linear" in code.files[0][1]


def test_source_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine: pass  # größer\n", encoding="utf-8")
    code = find_code("mine.py:Mine", [tmp_path])
    assert code_of_json(code.as_json()) == code


@pytest.mark.parametrize(
    ("class_path", "words"),
    [
        ("mine", "names no class"),
        ("mine.py:Mne", "has no class Mne; did you mean Mine"),
        ("mne.py:Mine", "did you mean mine.py:Mine"),
        ("nowhere.models:Mine", "no module nowhere.models"),
        ("broken.py:Mine", r"broken.py:2: .*; correct that line"),
        ("a-b.c:Mine", "not the name of a module"),
        ("random:Mine", "has the name of a module of Python; rename it"),
        ("core:Mine", "has the name of a module of pretune; rename it"),
        ("numpy:Mine", "has the name of an installed package"),
        ("json:JSONDecoder", "no module json"),
    ],
)
def test_a_class_that_cannot_be_used_is_a_fault_with_a_remedy(tmp_path: Path, class_path: str, words: str) -> None:
    for name in ("mine", "random", "core", "numpy"):
        (tmp_path / f"{name}.py").write_text("class Mine: pass\n")
    (tmp_path / "broken.py").write_text("class Mine:\n  def (: pass\n")
    with pytest.raises(CodeNotFoundError, match=words):
        find_code(class_path, [tmp_path])
