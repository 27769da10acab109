"""Subject patterns as the broker reads them: matching, overlap, and subject transforms."""

from __future__ import annotations

import re
from functools import lru_cache

from callboard.runtime.errors import TopologyError

_FNV_OFFSET = 2166136261
_FNV_PRIME = 16777619
_FUNCTION = re.compile(r"\{\{\s*(wildcard|partition)\s*\(([\d\s,]+)\)\s*\}\}|\$(\d+)", re.IGNORECASE)


def is_literal(pattern: str) -> bool:
    """Return whether ``pattern`` has no wildcard."""
    return "*" not in pattern and ">" not in pattern


def matches(pattern: str, subject: str) -> bool:
    """Return whether ``subject`` (without wildcards) falls under ``pattern``."""
    return _matches(_tokens(pattern), subject)


def overlaps(left: str, right: str) -> bool:
    """Return whether some subject falls under both patterns."""
    first, second = _tokens(left), _tokens(right)
    for mine, other in zip(first, second, strict=False):
        if ">" in (mine, other):
            return True
        if mine != other and "*" not in (mine, other):
            return False
    return len(first) == len(second)


def partition_of(count: int, *tokens: str) -> int:
    """Return the partition, 0 to ``count - 1``, that the broker's ``partition(count, …)`` gives these tokens.

    FNV-1a over the tokens joined without a separator, so that ``("ab", "c")`` and ``("a", "bc")`` fall together.
    """
    value = _FNV_OFFSET
    for byte in "".join(tokens).encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value % count


class Transform:
    """A stream's subject transform: subjects under ``source`` are stored under a name built from their tokens."""

    __slots__ = ("_destination", "_source", "_stars")

    def __init__(self, source: str, destination: str) -> None:
        """Take a pattern and a template with ``{{wildcard(n)}}``, ``{{partition(count,n,…)}}`` or ``$n``.

        Raises:
            TopologyError: If the template names a wildcard that the pattern does not have.
        """
        self._source = source
        self._destination = destination
        self._stars = tuple(index for index, part in enumerate(source.split(".")) if part == "*")
        for found in _FUNCTION.finditer(destination):
            name, arguments, short = found.groups()
            numbers = [int(short)] if short else [int(part) for part in arguments.split(",")]
            wanted = numbers[1:] if name and name.lower() == "partition" else numbers
            if any(not 0 < number <= len(self._stars) for number in wanted):
                message = f"subject transform {destination!r} names a wildcard that {source!r} does not have"
                raise TopologyError(message)

    def apply(self, subject: str) -> str:
        """Return the stored name of ``subject``; unchanged when it does not fall under the pattern."""
        if not matches(self._source, subject):
            return subject
        tokens = subject.split(".")
        wild = [tokens[index] for index in self._stars]

        def fill(found: re.Match[str]) -> str:
            name, arguments, short = found.groups()
            if short:
                return wild[int(short) - 1]
            numbers = [int(part) for part in arguments.split(",")]
            if name.lower() == "wildcard":
                return wild[numbers[0] - 1]
            return str(partition_of(numbers[0], *(wild[number - 1] for number in numbers[1:])))

        filled = _FUNCTION.sub(fill, self._destination)
        if not filled.endswith(">"):
            return filled
        return filled[:-1] + ".".join(tokens[self._source.count(".") :])


@lru_cache(maxsize=4096)
def _tokens(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split("."))


def _matches(pattern: tuple[str, ...], subject: str) -> bool:
    tokens = subject.split(".")
    for index, wanted in enumerate(pattern):
        if wanted == ">":
            return len(tokens) > index
        if index >= len(tokens) or (wanted not in ("*", tokens[index])):
            return False
    return len(tokens) == len(pattern)
