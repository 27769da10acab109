"""From HTML to its words, in time that grows with its length alone: the page may have been written to take for ever."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Final

_SKIPPED: Final = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_BLOCKS: Final = frozenset(
    {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre"}
)
# what begins a tag, a comment or a declaration; any other "<" is text
_OPENING: Final = re.compile(r"<(?=[A-Za-z/!?])")
_NAME: Final = re.compile(r"/?([A-Za-z][A-Za-z0-9:-]{0,30})")
_INSIDE: Final = re.compile(r"[\"'>]")
_LINK: Final = re.compile(r"\bhref\s{0,10}=\s{0,10}[\"']?(https?://[^\"'\s<>]{1,2000})", re.IGNORECASE)
_ENDS: Final = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _SKIPPED}
_TAG_CHARS: Final = 8192


def words(html: str) -> str:
    """Return the words of a page, its blocks on lines of their own, with the addresses of its links."""
    lines = "".join(_pieces(html)).splitlines()
    kept = (" ".join(line.split()) for line in lines)
    return "\n".join(line for line in kept if line)


def _pieces(html: str) -> Iterator[str]:
    at = 0
    # of a quotation mark that does not come again it is not looked for again
    missing: set[str] = set()
    while (opening := _OPENING.search(html, at)) is not None:
        start = opening.start()
        yield _text(html[at:start])
        if html.startswith("<!--", start):
            at = _behind(html, "-->", start + 4)
            continue
        end = _end_of_tag(html, start + 1, missing)
        inside = html[start + 1 : min(end, start + _TAG_CHARS)]
        at = end + 1
        found = _NAME.match(inside)
        name = found[1].lower() if found is not None else ""
        if name in _SKIPPED and not inside.startswith("/"):
            closing = _ENDS[name].search(html, at)
            at = len(html) if closing is None else closing.start()
        elif name in _BLOCKS:
            yield "\n"
        elif name == "a" and (link := _LINK.search(inside)) is not None:
            yield f" <{unescape(link[1])}> "
    yield _text(html[at:])


def _end_of_tag(html: str, at: int, missing: set[str]) -> int:
    """Return where the tag that is open at ``at`` ends: at its ``>`` outside of quotation marks, or with the page."""
    while (found := _INSIDE.search(html, at)) is not None:
        mark = found[0]
        if mark == ">":
            return found.start()
        closing = -1 if mark in missing else html.find(mark, found.end())
        if closing < 0:
            missing.add(mark)
        at = found.end() if closing < 0 else closing + 1
    return len(html)


def _behind(html: str, mark: str, at: int) -> int:
    found = html.find(mark, at)
    return len(html) if found < 0 else found + len(mark)


def _text(raw: str) -> str:
    try:
        return unescape(raw)
    except ValueError:
        # a number of thousands of digits
        return raw
