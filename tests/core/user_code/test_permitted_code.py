"""Only permitted code is imported, from its text, and it hides no other module."""

import logging
import random
import sys
from pathlib import Path

import pytest

from core.user_code.class_source import find_code
from core.user_code.code_places import UserCodeError
from core.user_code.permitted_code import CodeNotPermittedError, permit, permitted_class


def test_a_class_that_nobody_permitted_is_not_built(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w')\nclass Mine: pass\n")
    code = find_code("mine.py:Mine", [tmp_path])
    with pytest.raises(CodeNotPermittedError, match="--allow-code"):
        permitted_class(code.class_path, code.digest)
    assert not canary.exists()
    permit(code)
    assert canary.exists()


def test_permission_is_for_one_text_of_a_class(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine: size = 1\n")
    first = find_code("mine.py:Mine", [tmp_path])
    permit(first)
    file.write_text("class Mine: size = 2\n")
    second = find_code("mine.py:Mine", [tmp_path])
    with pytest.raises(CodeNotPermittedError):
        permitted_class(second.class_path, second.digest)
    permit(second)
    sizes = [permitted_class(code.class_path, code.digest)[1].size for code in (first, second)]
    assert sizes == [1, 2]


def test_a_file_with_the_name_of_a_module_hides_it_from_nobody(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("class Mine: pass\n")
    permit(find_code("random.py:Mine", [tmp_path]))
    assert sys.modules["random"] is random


def test_modules_of_a_package_import_each_other_and_no_other_file_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "my_parts_of_a_test").mkdir()
    (tmp_path / "my_parts_of_a_test/__init__.py").write_text("")
    (tmp_path / "my_parts_of_a_test/sizes.py").write_text("WIDTH = 3\n")
    text = "from my_parts_of_a_test.sizes import WIDTH\nclass Mine: width = WIDTH\n"
    (tmp_path / "my_parts_of_a_test/mixers.py").write_text(text)
    (tmp_path / "beside_a_test.py").write_text("")
    code = find_code("my_parts_of_a_test.mixers:Mine", [tmp_path])
    permit(code)
    assert permitted_class(code.class_path, code.digest)[1].width == 3
    (tmp_path / "lonely.py").write_text("import beside_a_test\nclass Mine: pass\n")
    with pytest.raises(UserCodeError, match=r"lonely.py:1: .*No module named 'beside_a_test'"):
        permit(find_code("lonely.py:Mine", [tmp_path]))


def test_prints_go_to_the_log_and_not_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "loud.py").write_text("print('hello', 3)\nclass Mine: pass\n")
    with caplog.at_level(logging.INFO, logger="pretune.user_code"):
        permit(find_code("loud.py:Mine", [tmp_path]))
    assert "hello 3" in caplog.text
    assert capsys.readouterr().out == ""


def test_an_error_of_the_import_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("class Mine: pass\n\n1 / 0\n")
    with pytest.raises(UserCodeError, match=r"late.py:3: the import of .* raised ZeroDivisionError"):
        permit(find_code("late.py:Mine", [tmp_path]))
