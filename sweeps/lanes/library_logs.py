"""Output of Ray and other libraries, logged to a file of the results folder. Without Ray."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.files.own_files import OwnLog
from data_pipeline.schema.redaction import RedactingFormatter
from sweeps.records.results_folder import LOG_FILE, check_writable

_OF_RAY = ("ray", "ray.data")
_WARNINGS = "py.warnings"


def is_verbose() -> bool:
    """Whether Ray and its workers print on the terminal (`pretune sweep -v`)."""
    return bool(os.environ.get("PRETUNE_VERBOSE"))


def log_libraries_in(results_folder: Path) -> None:
    """Create the results folder, and log the output of Ray and other libraries to a file there.

    With `-v` the output stays on the terminal.

    Raises:
        ResultsError: The folder is not writable.
    """
    check_writable(results_folder)
    if is_verbose():
        return
    handler = OwnLog(results_folder / LOG_FILE, encoding="utf-8", delay=True)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    _route((*_OF_RAY, _WARNINGS), handler)


def log_ray_there_too() -> None:
    """Once Ray is imported: log its output as `log_libraries_in` said. Its import sets up loggers of its own."""
    for handler in logging.getLogger(_WARNINGS).handlers:
        if isinstance(handler, OwnLog):
            _route(_OF_RAY, handler)


def _route(names: Iterable[str], handler: logging.Handler) -> None:
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
