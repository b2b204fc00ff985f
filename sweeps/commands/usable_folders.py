"""Folders of the environment that every library uses: a TMPDIR that works, and a place for caches without a home."""

import os

_LEAST_FREE_BYTES = 16 << 20
"""Free space below which a temporary folder is as good as full: the logs of Ray alone need more."""
_LONGEST = 4000


def settle_folders() -> list[str]:
    """Replace a TMPDIR that cannot be used, for this process and all that come of it; a line about it, if any.

    Raises:
        OSError: No temporary folder can be used.
    """
    lines = []
    given = os.environ.get("TMPDIR")
    fault = _fault_of(given) if given else ""
    if fault:
        import tempfile  # Most commands need it later or never.

        del os.environ["TMPDIR"]
        tempfile.tempdir = None  # Forget what Python has chosen.
        os.environ["TMPDIR"] = tempfile.gettempdir()
        lines.append(f"TMPDIR={given} {fault}; {tempfile.gettempdir()} is used")
    if not os.access(os.path.expanduser("~"), os.W_OK):
        from data_pipeline.files.own_files import private_temp_folder

        # Matplotlib warns at length otherwise.
        os.environ.setdefault("MPLCONFIGDIR", str(private_temp_folder("matplotlib", longest=_LONGEST)))
    return lines


def _fault_of(folder: str) -> str:
    """The reason for which a folder cannot hold temporary files; empty if it can."""
    import shutil
    import tempfile

    if not os.path.exists(folder):
        return "does not exist"
    if not os.path.isdir(folder):
        return "is no folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return f"has {free >> 20} MiB free" if free < _LEAST_FREE_BYTES else ""
