"""How a file is built: its lines by kind, its headings, and the prose inside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from callboard.agents.digest.language import Language
from callboard.agents.digest.text import Sentence, sentences_of


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of lines; ``code`` is every line that is neither blank nor only a comment (in prose: the text)."""

    total: int = 0
    code: int = 0
    comment: int = 0
    blank: int = 0
    longest_chars: int = 0


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """A heading, its level (1 is the title) and its line, counted from 1."""

    text: str
    level: int
    line: int


_MAX_HEADINGS: Final = 200
_MAX_HEADING_CHARS: Final = 160
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_ATX = re.compile(r" {0,3}(#{1,6})\s+(.+?)\s*#*\s*$")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})\s*$")
_RST_LINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\s*$")
_ASCIIDOC = re.compile(r"(={1,6})\s+(\S.*)$")
_ORG = re.compile(r"(\*{1,6})\s+(\S.*)$")
_LATEX = re.compile(r"\s*\\(part|chapter|section|subsection|subsubsection)\*?\{([^}]{1,200})\}")
_LATEX_LEVEL: Final = {"part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4}
_HTML = re.compile(r"<h([1-6])\b[^>]{0,200}>(.{1,400}?)</h\1>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,300}>")
_SECTION = re.compile(r"\s*\[{1,2}([^\[\]]{1,120})\]{1,2}\s*(?:[#;].*)?$")
_LIST_ITEM = re.compile(r"\s*(?:[-*+\u2022]|\d{1,3}[.)])\s+")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\](?:\([^()\s]{0,500}(?:\s\"[^\"]{0,200}\")?\)|\[[^\[\]]{0,100}\])")
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|``?)(?=\S)(.{1,300}?)(?<=\S)\1(?!\w)")
_RST_ROLE = re.compile(r":[\w:+.-]{1,40}:(?=`)")
_NOT_PROSE = re.compile(r"\s*(?:\||\.\. |\+[-=+]{3,}|[-=*_~#]{4,}\s*$|<!--|</?\w+[^>]*>\s*$|:\w+:|@\w+)")


def count_lines(lines: list[str], language: Language) -> Lines:
    """Count lines by kind. A line with code and a trailing comment is code; strings that look like comments fool it."""
    comment = blank = 0
    closing = ""
    for line in lines:
        stripped = line.strip()
        if closing:
            comment += 1
            closing = "" if closing in stripped else closing
        elif not stripped:
            blank += 1
        elif opened := _opens_block(stripped, language):
            comment += 1
            closing = "" if opened[1] in stripped[len(opened[0]) :] else opened[1]
        elif stripped.startswith(language.line_comments or ("\0",)):
            comment += 1
    longest = max(map(len, lines), default=0)
    total = len(lines)
    return Lines(total=total, code=total - comment - blank, comment=comment, blank=blank, longest_chars=longest)


def headings_of(lines: list[str], language: Language) -> list[Heading]:
    """Return at most 200 headings in order; sections of TOML and INI files count as headings."""
    finder = {
        "Markdown": _markdown_headings, "reStructuredText": _rst_headings, "HTML": _html_headings,
        "AsciiDoc": _asciidoc_headings, "Org": _org_headings, "LaTeX": _latex_headings,
        "TOML": _section_headings, "INI": _section_headings,
    }.get(language.name)  # fmt: skip
    headings: list[Heading] = []
    for heading in finder(lines) if finder else ():
        headings.append(heading)
        if len(headings) == _MAX_HEADINGS:
            break
    return headings


def prose_of(lines: list[str], language: Language) -> list[Sentence]:
    """Return the sentences of a prose file: no fenced code, tables, headings or markup; list items stand alone."""
    sentences: list[Sentence] = []
    paragraph: list[str] = []
    begin = 1
    fence = ""
    skip = {heading.line for heading in headings_of(lines, language)}
    for number, line in enumerate([*lines, ""], start=1):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        is_item = bool(_LIST_ITEM.match(line))
        is_break = bool(fence or mark or not line.strip() or number in skip or is_item or _is_no_prose(line, language))
        if is_break and paragraph:
            sentences.extend(sentences_of(plain("\n".join(paragraph), language), begin))
            paragraph = []
        if not is_break or (is_item and not fence):
            begin = begin if paragraph else number
            paragraph.append(_LIST_ITEM.sub("", line, count=1) if is_item else line)
    return sentences


def plain(text: str, language: Language) -> str:
    """Return the text without inline markup: links become their words, emphasis and code marks go."""
    if language.name == "HTML":
        return _TAG.sub("", text)
    if language.name in {"Markdown", "reStructuredText", "Org", "AsciiDoc"}:
        text = _LINK.sub(r"\1", _RST_ROLE.sub("", text))
        return _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text))
    return text


def _opens_block(stripped: str, language: Language) -> tuple[str, str] | None:
    return next((pair for pair in language.block_comments if stripped.startswith(pair[0])), None)


def _is_no_prose(line: str, language: Language) -> bool:
    if language.name in {"Markdown", "reStructuredText"} and line.startswith(("    ", "\t")):
        return True
    return bool(_NOT_PROSE.match(line))


def _markdown_headings(lines: list[str]) -> Iterator[Heading]:
    fence = ""
    previous = ""
    for number, line in enumerate(lines, start=1):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and (found := _ATX.match(line)):
            yield Heading(text=_short(plain(found[2], _MARKDOWN)), level=len(found[1]), line=number)
        elif not fence and (rule := _SETEXT.match(line)) and previous.strip() and not _NOT_PROSE.match(previous):
            level = 1 if rule[1][0] == "=" else 2
            yield Heading(text=_short(plain(previous.strip(), _MARKDOWN)), level=level, line=number - 1)
        previous = "" if fence or mark or _LIST_ITEM.match(line) else line


def _rst_headings(lines: list[str]) -> Iterator[Heading]:
    levels: list[str] = []
    for number in range(1, len(lines)):
        rule, title = _RST_LINE.match(lines[number]), lines[number - 1].strip()
        if not rule or not title or _RST_LINE.match(title) or len(lines[number].rstrip()) < len(title):
            continue
        if rule[1] not in levels:
            levels.append(rule[1])
        yield Heading(text=_short(title), level=min(levels.index(rule[1]) + 1, 6), line=number)


def _html_headings(lines: list[str]) -> Iterator[Heading]:
    for number, line in enumerate(lines, start=1):
        for found in _HTML.finditer(line):
            text = _short(_TAG.sub("", found[2]).strip())
            if text:
                yield Heading(text=text, level=int(found[1]), line=number)


def _asciidoc_headings(lines: list[str]) -> Iterator[Heading]:
    for number, line in enumerate(lines, start=1):
        if found := _ASCIIDOC.match(line):
            yield Heading(text=_short(found[2]), level=len(found[1]), line=number)


def _org_headings(lines: list[str]) -> Iterator[Heading]:
    for number, line in enumerate(lines, start=1):
        if found := _ORG.match(line):
            yield Heading(text=_short(found[2]), level=len(found[1]), line=number)


def _latex_headings(lines: list[str]) -> Iterator[Heading]:
    for number, line in enumerate(lines, start=1):
        if found := _LATEX.match(line):
            yield Heading(text=_short(found[2]), level=_LATEX_LEVEL[found[1]], line=number)


def _section_headings(lines: list[str]) -> Iterator[Heading]:
    for number, line in enumerate(lines, start=1):
        if found := _SECTION.match(line):
            yield Heading(text=_short(found[1].strip()), level=min(found[1].count(".") + 1, 6), line=number)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_HEADING_CHARS else text[: _MAX_HEADING_CHARS - 1] + "\u2026"


_MARKDOWN: Final = Language("Markdown", "prose")
