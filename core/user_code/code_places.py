"""Errors of the user's code, each as one line with its place in the user's file."""

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from data_pipeline.schema.user_errors import InputFault, first_line


class UserCodeError(InputFault):
    """Code of the user raised an error, or breaks the contract of models. One line: place, error."""


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def place_of(error: BaseException, files: Sequence[str]) -> str | None:
    """`file:line` of the innermost frame in these files, of an error or of a cause behind it; None without one."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        if isinstance(one, SyntaxError) and one.filename in files:
            return f"{one.filename}:{one.lineno}"
        frames = [frame for frame in traceback.extract_tb(one.__traceback__) if frame.filename in files]
        if frames:
            return f"{frames[-1].filename}:{frames[-1].lineno}"
        one = one.__cause__ or one.__context__
    return None


def place_in_text(text: str, files: Sequence[str]) -> str | None:
    """`file:line` of the last line of a written traceback that lies in these files; None without one."""
    found = [f"{file}:{line}" for file, line in _FRAME.findall(text) if file in files]
    return found[-1] if found else None


@contextmanager
def told_with_place(
    what: str, files: Sequence[str], passes: Callable[[BaseException], bool] = lambda _: False
) -> Iterator[None]:
    """Turn an error in the block into a UserCodeError with its place.

    Args:
        what: Part of the code that is called, for the message: `Mixer.forward`.
        passes: Whether an error is left as it is, such as one of memory.
    """
    try:
        yield
    except UserCodeError:
        raise
    except Exception as error:
        if passes(error):
            raise
        place = place_of(error, files)
        raise UserCodeError(
            f"{place or (files[0] if files else what)}: {what} raised {type(error).__name__}: {first_line(error)}"
        ) from error
