"""What may leave for a broker: the one guard of both adapters (the client library's own, which costs more, is off)."""

from __future__ import annotations

import re

from callboard.runtime.bus.base import StreamConfig
from callboard.runtime.bus.header import Headers
from callboard.runtime.errors import InvalidHeaderError, InvalidNameError, PayloadTooLargeError

# A protocol line holds subject, reply and sizes and ends the connection when it is over 4,096 bytes.
MAX_SUBJECT_BYTES = 3000

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_BREAKS = re.compile(r"[\r\n\0]")
# "NATS/1.0", its line end and the empty line after the last header; then ": " and a line end for each.
_HEADERS_BYTES = 12
_HEADER_BYTES = 4


def check_subject(subject: str) -> None:
    """Refuse what is not one concrete subject.

    Raises:
        InvalidNameError: If it is empty, too long, has white space, control characters, an empty token or a wildcard.
    """
    _check_text(subject)
    if ("*" in subject or ">" in subject) and any(part in {"*", ">"} for part in subject.split(".")):
        message = f"subject {subject[:80]!r} has a wildcard: messages go to one concrete subject"
        raise InvalidNameError(message, name=subject[:80])


def check_filter(subject: str) -> None:
    """Refuse what is neither a subject nor a pattern with ``*`` for a token and ``>`` for the rest.

    Raises:
        InvalidNameError: If it is not.
    """
    _check_text(subject)
    *tokens, last = subject.split(".")
    if last not in {"*", ">"}:
        tokens.append(last)
    if any((">" in part) or ("*" in part and part != "*") for part in tokens):
        message = f"pattern {subject[:80]!r} is not usable: '*' stands alone in a token, '>' alone in the last one"
        raise InvalidNameError(message, name=subject[:80])


def check_headers(headers: Headers) -> int:
    """Return the size of ``headers`` on the wire in bytes.

    Raises:
        InvalidHeaderError: If a name is no token or a value holds CR, LF, NUL or a lone surrogate.
    """
    size_bytes = _HEADERS_BYTES
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            message = f"header name {name[:80]!r} is not usable: take letters, digits and '-'"
            raise InvalidHeaderError(message)
        if not (value.isascii() and value.isprintable()):
            size_bytes += _check_odd_value(name, value) - len(value)
        size_bytes += len(name) + len(value) + _HEADER_BYTES
    return size_bytes


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Refuse a message that the server would answer by ending the connection.

    Raises:
        PayloadTooLargeError: If body and headers together are over ``limit_bytes``.
    """
    if size_bytes > limit_bytes:
        message = f"a message of {size_bytes} bytes is over the server's limit of {limit_bytes}: send a claim check"
        raise PayloadTooLargeError(message, size_bytes=size_bytes, limit_bytes=limit_bytes)


def check_name(name: str, *, what: str) -> None:
    """Refuse what cannot name a stream or consumer: it becomes one token of an API subject.

    Raises:
        InvalidNameError: If it is empty or has white space, dots, wildcards or slashes.
    """
    if not name or not name.isprintable() or any(mark in name for mark in " .*>/\\"):
        message = f"{what} name {name[:80]!r} is not usable: take letters, digits, '_' and '-'"
        raise InvalidNameError(message, name=name[:80])


def changed_settings(wanted: StreamConfig, found: StreamConfig) -> list[str]:
    """Return ``field: found instead of wanted`` for every setting that differs, whatever the order of subjects."""
    lines = []
    for name in StreamConfig.__struct_fields__:
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if name in {"subjects", "sources"}:
            ours, theirs = sorted(ours, key=repr), sorted(theirs, key=repr)
        if ours != theirs:
            lines.append(f"{name}: {theirs!r} instead of {ours!r}")
    return lines


def _check_text(subject: str) -> None:
    # isprintable() is False for control characters and lone surrogates, and costs a tenth of a regular expression.
    if not subject or not subject.isprintable() or " " in subject:
        message = f"subject {subject[:80]!r} is not usable: it takes printable characters and no white space"
        raise InvalidNameError(message, name=subject[:80])
    if ".." in subject or subject[0] == "." or subject[-1] == ".":
        message = f"subject {subject[:80]!r} has an empty token"
        raise InvalidNameError(message, name=subject[:80])
    if len(subject) * 4 > MAX_SUBJECT_BYTES and len(subject.encode()) > MAX_SUBJECT_BYTES:
        message = f"subject {subject[:80]!r}… is over {MAX_SUBJECT_BYTES} bytes"
        raise InvalidNameError(message, name=subject[:80])


def _check_odd_value(name: str, value: str) -> int:
    if _HEADER_BREAKS.search(value):
        message = f"header {name} holds CR, LF or NUL, which headers cannot carry"
        raise InvalidHeaderError(message)
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        message = f"header {name} holds a lone surrogate and cannot be encoded as UTF-8"
        raise InvalidHeaderError(message) from error
