"""From bytes to text, words and sentences: what every measure of a file stands on."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

MAX_LINE_CHARS: Final = 2_000
"""Longer lines (minified code, data URLs) are cut before any pattern sees them, so no pattern can run away."""

_SNIFF_BYTES: Final = 65_536
_CONTROL: Final = frozenset(range(32)) - {9, 10, 12, 13, 27}
_FIRST_HIGH: Final = 0x80
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WORD = re.compile(r"[^\W\d_](?:[\w'\u2019-]*\w)?")
_HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_SENTENCE_END = re.compile(r"(?<=[.!?\u3002])[\"')\]\u201d\u2019]*\s+(?=[\"'(\[\u201c\u2018`]*[A-Z\u00c0-\u00de0-9`])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|Eq|Sec|ca|al|[A-Z])\.)$")


class Decoded(NamedTuple):
    """Text and how it was read; ``encoding`` is empty when the bytes are no text."""

    text: str
    encoding: str


class Sentence(NamedTuple):
    """One sentence and the line it begins on, counted from 1."""

    text: str
    line: int


def decode(data: bytes) -> Decoded:
    r"""Read bytes as text: by byte-order mark, else UTF-8, else Latin-1 when it looks like writing.

    Returns:
        The text with all line ends as ``\n``, or an empty text with an empty encoding when the bytes are binary.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _decode_as(data, encoding)
    if b"\0" in data[:_SNIFF_BYTES]:
        return Decoded("", "")
    utf8 = _decode_as(data, "utf-8")
    if utf8.encoding:
        return utf8
    head = data[:_SNIFF_BYTES]
    controls = sum(byte in _CONTROL for byte in head)
    high = sum(byte >= _FIRST_HIGH for byte in head)
    # Real Latin-1 writing is mostly ASCII with accents; compressed data is half high bytes and a tenth controls.
    if controls * 200 > len(head) or high * 3 > len(head):
        return Decoded("", "")
    return _decode_as(data, "latin-1")


def lines_of(text: str) -> list[str]:
    """Return the lines, each cut at `MAX_LINE_CHARS`. A last empty line (a final line end) does not count."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] for line in lines]


def words_of(text: str) -> list[str]:
    """Return the words as they are written, numbers left out."""
    return _WORD.findall(text)


def split_identifier(identifier: str) -> list[str]:
    """Return the words of an identifier: ``parseHTTPHeader_v2`` gives parse, http, header, v."""
    return [part.lower() for part in _HUMP.findall(identifier)]


def identifiers_of(lines: Iterable[str]) -> Iterator[str]:
    """Yield each identifier as it stands, in order, repeats included."""
    for line in lines:
        yield from _IDENTIFIER.findall(line)


def sentences_of(paragraph: str, line: int) -> Iterator[Sentence]:
    """Yield the sentences of one paragraph whose first line is ``line``; white space is made single spaces."""
    begin = 0
    offsets = [match.end() for match in _SENTENCE_END.finditer(paragraph)]
    for end in [*offsets, len(paragraph)]:
        piece = paragraph[begin:end]
        if end != len(paragraph) and _ABBREVIATION.search(piece.rstrip()):
            continue
        text = " ".join(piece.split())
        if text:
            skipped = len(piece) - len(piece.lstrip())
            yield Sentence(text, line + paragraph.count("\n", 0, begin + skipped))
        begin = end


def _decode_as(data: bytes, encoding: str) -> Decoded:
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, UnicodeError):
        return Decoded("", "")
    # Lone surrogates can come out of a UTF-16 file and cannot be written as JSON.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return Decoded(text.replace("\r\n", "\n").replace("\r", "\n"), encoding)
