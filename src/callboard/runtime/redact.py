"""Take secrets out of what is about to be logged: at any depth, by the name of a key and by the look of a text.

Only values whose text is known to be harmless come through: numbers, times, scrubbed texts, and containers of these.
Any other object shows as its type, because its ``repr`` could say anything.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, timedelta
from enum import Enum
from pathlib import PurePath
from uuid import UUID

import msgspec

REDACTED = "[redacted]"
MAX_DEPTH = 12
MAX_TEXT_CHARS = 32_768
"""Longer texts show as their length: bodies do not belong in logs, and patterns would take long on them."""

_WORDS = tuple(
    (  # noqa: SIM905 - a paragraph of words reads better than a column of quotes
        "password passwd passphrase pwd secret token authorization auth_header api_key access_key private_key nkey "
        "seed creds credential cookie jwt bearer session_id"
    ).split()
)
_SECRET_KEY = re.compile("|".join(word.replace("_", "") for word in _WORDS))
_NOT_ALNUM = re.compile(r"[^a-z0-9]+")

_ASSIGNED = "|".join(word.replace("_", "[_ -]?") for word in _WORDS)
_ASSIGNED_VALUE = r"""(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,;&)}\]]+)"""
# In order: whole blocks before their parts, headers before the words inside them.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?s)-----BEGIN [A-Z ]*(?:KEY|SEED|JWT)-----.*?(?:-----END [A-Z ]*-----|\Z)", REDACTED),
        (r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)\S{0,2048}@", rf"\1{REDACTED}@"),
        (r"eyJ[A-Za-z0-9_-]{4,4096}(?:\.[A-Za-z0-9_-]{0,4096}){1,4}", REDACTED),
        (r"S[UAOCNX][A-Z2-7]{56}", REDACTED),
        (r"(?:sk|rk|pk)-[A-Za-z0-9_-]{8,}", REDACTED),
        (r"(?:gh[pousr]_|github_pat_|xox[abprs]-|glpat-)[A-Za-z0-9_-]{8,}|A(?:KIA|SIA)[A-Z0-9]{16}", REDACTED),
        (r"(?i)(bearer\s+)[^\s\"',;]+", rf"\1{REDACTED}"),
        (r"(?i)(basic\s+)[A-Za-z0-9+/=_-]{8,}", rf"\1{REDACTED}"),
        (r"(?i)((?:authorization|cookie)[\"']?\s{0,8}[=:]\s{0,8})[^\r\n]+", rf"\1{REDACTED}"),
        (
            rf"(?i)((?:{_ASSIGNED})[\w-]{{0,32}}[\"']?\s{{0,8}}[=:]\s{{0,8}})" + _ASSIGNED_VALUE,
            rf"\1{REDACTED}",
        ),
    )
)


def redact(event: Mapping[str, object]) -> dict[str, object]:
    """Return ``event`` without secrets, made of plain dicts, lists, texts and numbers. Never changes its argument.

    Raises whatever an object's own code raises; the caller must then print nothing of the event.
    """
    return _mapping(event, MAX_DEPTH)


def redact_text(text: str) -> str:
    """Return ``text`` without anything that looks like a secret."""
    if len(text) > MAX_TEXT_CHARS:
        return f"[{len(text)} characters]"
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers whose names do not say that they are secret, as records keep them."""
    return {name: value for name, value in headers.items() if not is_secret_key(name)}


def is_secret_key(key: str) -> bool:
    """Return whether a value under ``key`` is a secret by its name, whatever case or separators it is spelled with."""
    return _SECRET_KEY.search(_NOT_ALNUM.sub("", key.lower())) is not None


def _mapping(mapping: Mapping[object, object] | Mapping[str, object], depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in mapping.items():
        name = key if isinstance(key, str) else _key_text(key)
        found[redact_text(name)] = _under(name, value, depth - 1)
    return found


def _key_text(key: object) -> str:
    """Return a key that is no text as one; an unknown object as its type, because its ``str`` could say anything."""
    if isinstance(key, bytes):
        return key.decode(errors="replace")
    return str(key) if key is None or isinstance(key, bool | int | float) else f"<{type(key).__name__}>"


def _under(key: str, value: object, depth: int) -> object:
    if not is_secret_key(key):
        return _value(value, depth)
    # Model tokens are counted, not hidden: `tokens_in`, `max_tokens`.
    if "tokens" in key.lower() and isinstance(value, int | float):
        return _value(value, depth)
    return REDACTED


def _value(value: object, depth: int) -> object:  # noqa: PLR0911 - one return per kind of value
    if depth < 0:
        return "[too deep]"
    if isinstance(value, Enum):
        return _value(value.value, depth - 1)
    if value is None or isinstance(value, bool | int | float):
        return _number(value)
    if isinstance(value, str):
        return redact_text(str.__str__(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, Sequence):
        return _items(value, depth)
    if isinstance(value, AbstractSet):
        return [_value(item, depth - 1) for item in value]
    return _object(value, depth)


def _number(value: float | None) -> float | None:
    """Return ``value`` as a plain number: a subclass could bring a ``repr`` of its own."""
    if value is None or isinstance(value, bool):
        return value
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _items(items: Sequence[object], depth: int) -> object:
    """Return a list; a pair whose first half names a secret, as headers often come, loses its second."""
    if len(items) == 2 and isinstance(items[0], str | bytes):  # noqa: PLR2004 - a pair
        key = _key_text(items[0]) if isinstance(items[0], bytes) else items[0]
        if is_secret_key(key):
            return [redact_text(key), REDACTED]
    return [_value(item, depth - 1) for item in items]


def _object(value: object, depth: int) -> object:
    if isinstance(value, BaseException):
        return redact_text(f"{type(value).__name__}: {value}")
    if isinstance(value, date | PurePath | UUID):
        return redact_text(str(value))
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, msgspec.Struct):
        return _mapping({name: getattr(value, name) for name in value.__struct_fields__}, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _mapping({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth)
    return f"<{type(value).__name__}>"
