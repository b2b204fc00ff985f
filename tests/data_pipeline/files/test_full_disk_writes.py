"""Files on a disk that is full: they stay as they were, and the error says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from command import ROOT
from data_pipeline.files.whole_files import append_line
from patience import HANGS_AFTER_S

SCRIPT = """\
import os, sys
from pathlib import Path
from data_pipeline.files.disk_room import NoRoomError
from data_pipeline.files.whole_files import append_line, write_atomically, write_whole
folder = Path(sys.argv[1])
whole, text, lines = folder / "whole", folder / "text", folder / "lines"
write_whole(whole, b"old"); write_atomically(text, "old")
for number in range(9): append_line(lines, str(number) * 500)
with open(folder / "filler", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError: pass
for write in (
    lambda: write_whole(whole, bytes(9000)),
    lambda: write_atomically(text, "new" * 3000),
    lambda: append_line(lines, "9" * 9000),
):
    try: write()
    except NoRoomError as error: print(error.strerror, error.filename)
print(whole.read_bytes(), text.read_text(), lines.read_text().count("\\n"), lines.stat().st_size)
print(sorted(os.listdir(folder)))
"""


def test_a_full_disk_leaves_files_and_lines_as_they_were(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to mount (run as root)")
    mount = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )
    assert done.returncode == 0, done.stderr
    *told, content, names = done.stdout.splitlines()
    assert told == [
        f"the disk is full: 8.79 KiB are needed, 0 B are free {tmp_path}/{name}" for name in ("whole", "text", "lines")
    ]
    assert content == "b'old' old 9 4509"
    assert names == "['filler', 'lines', 'text', 'whole']"


def test_a_line_that_was_cut_off_spoils_no_later_one(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text('{"whole": 1}\n{"cut of')
    append_line(file, '{"next": 2}')
    assert file.read_text() == '{"whole": 1}\n{"cut of\n{"next": 2}\n'
