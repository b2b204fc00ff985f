"""Settings files as editors and shells save them, and sections that others are merged from."""

import codecs
from pathlib import Path

import pytest

from sweep_examples import TINY, tiny_sweep
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_file import load_sweep_file

WITH_UMLAUT = TINY + "purpose: größer?\n"


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + WITH_UMLAUT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + WITH_UMLAUT.encode("utf-16-be"),
        WITH_UMLAUT.encode("utf-16-le"),
        WITH_UMLAUT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + WITH_UMLAUT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + WITH_UMLAUT.encode("utf-32-be"),
        codecs.BOM_UTF8 + WITH_UMLAUT.encode(),
        WITH_UMLAUT.replace("\n", "\r\n").encode(),
        codecs.BOM_UTF16_LE + WITH_UMLAUT.replace("\n", "\r\n").encode("utf-16-le"),
    ],
    ids=["16 LE", "16 BE", "16 LE bare", "16 BE bare", "32 LE", "32 BE", "8 with mark", "CRLF", "PowerShell"],
)
def test_file_in_any_unicode_encoding_and_with_windows_line_ends_is_read(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(data)
    assert load_sweep_file(file) == tiny_sweep("purpose=größer?")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (WITH_UMLAUT.encode("latin-1"), "file: is not text in UTF-8 (line 11); save it as UTF-8."),
        (
            codecs.BOM_UTF16_LE + "name: a".encode("utf-16-le")[:-1],
            "file: is not text in UTF-16 (line 1); save it as UTF-8.",
        ),
        (
            b"name: a\nmodel:\n\twidth: 3\n",
            "line 3: file: a tab is in the place of a space; indent and separate with spaces.",
        ),
        (
            b"name: a\nmodel:\n  layers: 1\n  \twidth: 3\n",
            "file: a tab is in the place of a space; indent and separate with spaces.",
        ),
        (b"name: a\nmodel:\t{}\n", "line 2: file: a tab is in the place of a space; indent and separate with spaces."),
        (b"name: a\ncorpus: [\n", "file: is not YAML"),
        (b"", "file: contains no settings; start it with `name: my-sweep`"),
    ],
)
def test_file_that_cannot_be_read_says_why_in_one_line_and_names_no_other_file(
    data: bytes, fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(data)
    with pytest.raises(SettingsFileError) as caught:
        load_sweep_file(file)
    (found,) = caught.value.faults
    assert fault in str(found)
    assert "did you mean" not in str(found)


EXTENDED = """\
x-small: &small {batch_size: 16, learning_rate: 1e-3}
x-long: &long
  learning_rate: 1e-2
  warmup: 0.2
"""


def test_keys_that_begin_with_x_hold_anchors_and_are_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"{EXTENDED}{TINY}training: {{<<: [*small, *long], seed: 3}}\n")
    sweep = load_sweep_file(file)
    # Of two merged sections the first counts.
    assert sweep == tiny_sweep(
        "training.batch_size=16", "training.learning_rate=1e-3", "training.warmup=0.2", "training.seed=3"
    )


def test_fault_of_a_merged_setting_has_the_line_of_its_anchor(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"{EXTENDED.replace('0.2', '2')}{TINY}training: {{<<: [*small, *long], seed: -3}}\n")
    with pytest.raises(SettingsFileError) as caught:
        load_sweep_file(file)
    lines = {fault.location: fault.line for fault in caught.value.faults}
    assert lines == {"training.warmup": 4, "training.seed": EXTENDED.count("\n") + TINY.count("\n") + 1}


def test_only_top_level_keys_of_the_file_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"{TINY}training: {{x-seed: 1}}\n")
    with pytest.raises(SettingsFileError) as caught:
        load_sweep_file(file, ["x-any=1"])
    assert {fault.location for fault in caught.value.faults} == {"training.x-seed", "x-any"}
