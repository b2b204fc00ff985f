"""Base class of errors in user input."""

from data_pipeline.schema.redaction import redact


class InputFault(ValueError):  # noqa: N818 - the user's fault, in the sense of a defect to mend, not an error of ours
    """A user input is invalid. The message is one paragraph: location, value, rule, remedy.

    The command line prints it without a traceback and ends with exit code 2. Secrets of URLs in it are masked.
    """

    def __init__(self, message: str) -> None:
        # The bytes of a file name may be no UTF-8.
        super().__init__(redact(message).encode("utf-8", "backslashreplace").decode())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; the name of its class where it has no message.

    Libraries quote URLs in their messages: secrets of URLs are masked.
    """
    return redact((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]
