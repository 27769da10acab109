"""The digest of one file: what a reader would want to know before opening it."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from callboard.agents.digest.keyphrase import Phrase, identifier_chunks, keyphrases, prose_chunks
from callboard.agents.digest.language import Language, binary_name, language_of
from callboard.agents.digest.shingle import shingles, signature
from callboard.agents.digest.structure import Heading, Lines, count_lines, headings_of, prose_of
from callboard.agents.digest.summary import Telling, telling_sentences
from callboard.agents.digest.symbol import Symbol, source_of
from callboard.agents.digest.text import MAX_LINE_CHARS, Sentence, decode, identifiers_of, lines_of, words_of

_MAX_READ_CHARS: Final = 1_500_000
_LONG_LINE_CHARS: Final = 1_000
_PYTHON_NAMES: Final = 120


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the report knows of one file; small enough to be a task's result (2 to 10 KB).

    Attributes:
        path: As given, with ``/`` between folders.
        kind: ``prose``, ``code``, ``data``, ``empty`` or ``binary``.
        language: Language of a text, format of a binary file.
        encoding: How the bytes were read; empty for binary files.
        sha256: Of the bytes, in hex.
        imports: Python only: dotted names, relative ones with their leading dots.
        phrases: Key phrases, best first.
        terms: Phrases with their counts, for weighing over a corpus.
        sentences: The most telling sentences, in the order of the text.
        signature: MinHash of the word shingles; empty when there are no words.
        notes: What the reader should know: a fallback encoding, a cut, a file that does not parse.
    """

    path: str
    kind: str
    language: str
    size_bytes: int
    sha256: str
    encoding: str = ""
    lines: Lines = Lines()
    words: int = 0
    headings: list[Heading] = []
    symbols: list[Symbol] = []
    imports: list[str] = []
    phrases: list[Phrase] = []
    terms: dict[str, int] = {}
    sentences: list[Telling] = []
    signature: list[int] = []
    notes: list[str] = []


def digest_bytes(path: str, data: bytes) -> Digest:
    """Digest one file. Never raises for any bytes; the same path and bytes always give the same digest.

    About 10 ms for an ordinary file. Sizes and lines count the whole file; of texts over 1.5 million characters only
    the beginning is read for words, phrases, sentences and likeness, and ``notes`` says so.
    """
    path = path.replace("\\", "/").encode("utf-8", "replace").decode("utf-8")
    sha256 = hashlib.sha256(data).hexdigest()
    if not data:
        language = language_of(path)
        return Digest(path=path, kind="empty", language=language.name, size_bytes=0, sha256=sha256, encoding="utf-8")
    decoded = decode(data)
    if not decoded.encoding:
        return Digest(path=path, kind="binary", language=binary_name(data), size_bytes=len(data), sha256=sha256)
    return _digest_text(path, decoded.text, encoding=decoded.encoding, size_bytes=len(data), sha256=sha256)


def _digest_text(path: str, text: str, *, encoding: str, size_bytes: int, sha256: str) -> Digest:
    language = language_of(path, text[:200].partition("\n")[0])
    all_lines = lines_of(text)
    notes = _notes(text, encoding, language)
    read = text[:_MAX_READ_CHARS]
    lines = all_lines if len(read) == len(text) else lines_of(read)
    symbols, imports, prose, is_parsed = _read(read, lines, language)
    if not is_parsed:
        notes.append("Does not parse as Python 3; symbols were found by pattern.")
    is_code = language.kind != "prose"
    chunks = prose_chunks(sentence.text for sentence in prose)
    if is_code:
        chunks += identifier_chunks(identifiers_of(lines))
    found = keyphrases(chunks, is_code=is_code)
    return Digest(
        path=path, kind=language.kind, language=language.name, size_bytes=size_bytes, sha256=sha256, encoding=encoding,
        lines=_whole_lines(text, all_lines, language), words=len(words_of(read)),
        headings=headings_of(lines, language), symbols=symbols, imports=imports[:_PYTHON_NAMES],
        phrases=found.best, terms=found.terms, sentences=telling_sentences(prose),
        signature=signature(shingles(read)), notes=notes,
    )  # fmt: skip


def _read(text: str, lines: list[str], language: Language) -> tuple[list[Symbol], list[str], list[Sentence], bool]:
    if language.kind == "prose":
        return [], [], prose_of(lines, language), True
    source = source_of(text, lines, language)
    return source.symbols, source.imports, source.prose, source.is_parsed or len(text) >= _MAX_READ_CHARS


def _whole_lines(text: str, lines: list[str], language: Language) -> Lines:
    counted = count_lines(lines, language)
    longest = max(map(len, text.split("\n")), default=0) if counted.longest_chars >= MAX_LINE_CHARS else None
    return counted if longest is None else msgspec.structs.replace(counted, longest_chars=longest)


def _notes(text: str, encoding: str, language: Language) -> list[str]:
    notes: list[str] = []
    if encoding not in {"utf-8", "utf-8-sig"}:
        notes.append(f"Read as {encoding}, because it is not UTF-8.")
    if len(text) > _MAX_READ_CHARS:
        notes.append(
            f"Long: words, phrases and sentences are from the first {_MAX_READ_CHARS / 1e6:.1f} million characters."
        )
    longest = max(map(len, text[:_MAX_READ_CHARS].split("\n")))
    if language.kind == "code" and longest > _LONG_LINE_CHARS:
        notes.append(f"Its longest line has {longest:,} characters: probably generated or minified.")
    return notes
