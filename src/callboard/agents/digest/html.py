"""Writing HTML: everything that comes from a file or a worker goes through `esc`, and numbers read like a person's."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

_KB: Final = 1024
_MINUTE_S: Final = 60
# From here on a decimal says nothing more.
_WHOLE_SIZE: Final = 100
_WHOLE_S: Final = 20
# Below this, rounding to milliseconds stays under a second.
_UNDER_A_SECOND_S: Final = 0.9995


def esc(value: object) -> str:
    """Return the text of a value, safe in an element and in a quoted attribute; control characters are dropped."""
    text = str(value)
    return html.escape("".join(char for char in text if char >= " " or char in "\n\t"), quote=True)


def size(size_bytes: int) -> str:
    """Return a size as a person writes it: 812 B, 3.4 KB, 1.2 MB."""
    if size_bytes < _KB:
        return f"{size_bytes} B"
    value = size_bytes / _KB
    for unit in ("KB", "MB", "GB"):
        if value < _KB or unit == "GB":
            break
        value /= _KB
    return f"{value:.0f} {unit}" if value >= _WHOLE_SIZE else f"{value:.1f} {unit}"


def seconds(value: float) -> str:
    """Return a duration as a person writes it: 41 ms, 3.2 s, 2 min 5 s."""
    if value < _UNDER_A_SECOND_S:
        return f"{value * 1000:.0f} ms"
    if value < _MINUTE_S:
        return f"{value:.1f} s" if value < _WHOLE_S else f"{value:.0f} s"
    whole = round(value)
    return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: 1 file, 2 files, 1,204 files."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]], *, css: str = "") -> str:
    """Return a table whose first column heads its rows.

    Args:
        caption: Text, escaped here.
        head: Column titles, escaped here; a title that begins with ``#`` is a column of numbers.
        rows: Cells of ready HTML.
        css: Class of the table.
    """
    titles = list(head)
    numeric = [title.startswith("#") for title in titles]
    marks = [' class="num"' if number else "" for number in numeric]
    top = "".join(f'<th scope="col"{mark}>{esc(t.lstrip("#"))}</th>' for t, mark in zip(titles, marks, strict=True))
    body: list[str] = []
    for row in rows:
        first, *rest = row
        cells = "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(rest, marks[1:], strict=True))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table class="{esc(css)}">'
        f"<caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def bar(share: float, css: str = "c0") -> str:
    """Return one horizontal bar as an SVG that fills its cell; the number beside it is what a screen reader gets."""
    width = max(min(share, 1.0), 0.0) * 100
    width = max(width, 0.6) if share > 0 else 0.0
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<rect class="rail" width="100" height="10"/><rect class="{esc(css)}" width="{width:.2f}" height="10"/></svg>'
    )
