"""Redaction: URLs, and texts that quote them, without their passwords, tokens and signatures.

A value that may hold a URL is redacted where it enters a record, a message or a log.
"""

import logging
import re
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, PlainSerializer

MASK = "***"
"""Text in place of a secret."""

# User information ends at the last @ before the next URL, because passwords may hold / and @. In a text it also ends at
# white space and double quotes. Each pattern stops where it could start again, so its time is linear in the text.
_USER_IN_URL = re.compile(r"(?<=[A-Za-z0-9])(://)((?:(?!://).)*)@", re.DOTALL)
_USER_IN_TEXT = re.compile(r'(?<=[A-Za-z0-9])(://)((?:(?!://)[^\s"<>])*)@')
# pathlib turns the two slashes of a URL into one.
_USER_IN_PATH = re.compile(r'(?<=[A-Za-z0-9])(:/)(?!/)((?:(?!:/)[^\s"<>])*)@')
_SCHEME_BEFORE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_LONGEST_SCHEME = 32
_HOST = re.compile(r"(\[[^\]]*\]|[^:@]*)(:\d*)?")
_SCHEMES_WITH_PORTS = {"http", "https", "ftp", "sftp", "ssh", "hdfs", "webhdfs"}
"""In `scheme://name:123/`, the number is a port. Elsewhere it may be the start of a password."""
_SCHEMES_WITH_NAMES = {"abfs", "abfss", "wasb", "wasbs", "adl", "hdfs", "webhdfs", "ftp", "sftp", "ssh", "git+ssh"}
"""In `scheme://name@host`, the name is that of a user or a container. Elsewhere it may be a token."""

_QUERY = re.compile(r"""(?<=[?#])[^\s"'<>]+""")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORD = re.compile(
    "sig|signature|token|secret|password|passwd|passphrase|pass|pwd|credentials?|auth|authorization|key|apikey|"
    "accesskey|jwt|hmac|code|session|sas|otp|bearer|.*(token|secret|password|signature|apikey)"
)
_OF_A_SIGNATURE = re.compile(r"(x-amz-|x-goog-).*|expires|policy|s[eptvri]|spr|sk[a-z]+|ss|srt", re.IGNORECASE)
"""Parameters that change with each signature (Amazon, Google, Azure)."""


def redact(text: str) -> str:
    """The text, in which every URL has a mask for its user information and for the secrets of its query."""
    return _QUERY.sub(_masked_query, _USER_IN_PATH.sub(_masked_user, _USER_IN_TEXT.sub(_masked_user, text)))


def redact_url(value: str) -> str:
    """A URL with masks for its user information and the secrets of its query; a local path unchanged."""
    return redact(_USER_IN_URL.sub(_masked_user, value)) if "://" in value else value


def recorded_path(value: str) -> str:
    """A path or URL as records show it: redacted, with escapes in place of the bytes of a name that is no UTF-8."""
    return redact_url(value).encode("utf-8", "backslashreplace").decode()


def redact_urls(value: Any) -> Any:
    """A URL or a list of URLs, redacted as by `redact_url`; any other value unchanged."""
    if isinstance(value, list | tuple):
        return [redact_urls(one) for one in value]
    return redact_url(value) if isinstance(value, str) else value


def has_user_information(url: str) -> bool:
    """Whether a URL holds a password, or a user where it may be a token. A user of SSH or HDFS is none."""
    return _USER_IN_URL.sub(_masked_user, url) != url


class RedactingFormatter(logging.Formatter):
    """Formats log lines, tracebacks included, and redacts them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redact(super().format(record))


def _masked_user(match: re.Match[str]) -> str:
    slashes, user = match.groups()
    authority = re.split(r"[/?#]", user, maxsplit=1)[0]
    before = match.string[max(0, match.start() - _LONGEST_SCHEME) : match.start()]
    found = _SCHEME_BEFORE.search(before)
    scheme = found[0].lower() if found else ""
    is_path = authority != user and "@" not in authority
    if is_path and _HOST.fullmatch(authority) and (":" not in authority or scheme in _SCHEMES_WITH_PORTS):
        return match[0]
    if ":" not in authority and (slashes == ":/" or scheme in _SCHEMES_WITH_NAMES):
        return match[0]
    return f"{slashes}{MASK}@"


def _masked_query(match: re.Match[str]) -> str:
    parts = re.split(r"([&;?#])", match[0])
    if any(map(_is_secret, parts)):
        parts = [_masked(part) if _is_secret(part) or _is_of_a_signature(part) else part for part in parts]
    return "".join(parts)


def _is_secret(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    words = [word.lower() for word in _WORD.findall(name)]
    plain = unquote(value)
    return value != "" and (
        any(map(_SECRET_WORD.fullmatch, words))
        # A URL inside a URL is quoted.
        or (plain != value and redact(plain) != plain)
    )


def _is_of_a_signature(parameter: str) -> bool:
    name, equals, _ = parameter.partition("=")
    return equals == "=" and _OF_A_SIGNATURE.fullmatch(name) is not None


def _masked(parameter: str) -> str:
    return f"{parameter.partition('=')[0]}={MASK}"


def _without_user_information(given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if any(has_user_information(one) for one in _each(given)):
        raise ValueError(
            "holds a user or a password, which results would keep; remove them from the URL and give them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or in a "
            "profile of the store (AWS_PROFILE); for https, use a presigned URL or a downloaded file"
        )
    return given


def _each(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


_rules = AfterValidator(_without_user_information), PlainSerializer(redact_urls, when_used="json")

Source = Annotated[str, *_rules]
"""Path or URL from which a setting reads. User information is refused; what is written as JSON or YAML is redacted."""

Sources = Annotated[str | tuple[str, ...] | None, *_rules]
"""One `Source`, several, or none."""

RecordedPath = Annotated[str, AfterValidator(recorded_path)]
"""Path or URL of a file in a record, redacted and printable."""
