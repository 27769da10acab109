"""The page that a report stands in: one HTML file that needs nothing else and may run one script, ours."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

from msgspec import Struct

from callboard.agents.digest.html import esc


class Page(Struct, frozen=True, kw_only=True):
    """What stands around and in it.

    Attributes:
        title: Of the window. This and the next three are texts and escaped here.
        folder: Name of the folder it is about.
        kicker: The line above the headline.
        headline: What it comes to.
        footer: The last line, a text too.
        verdict: Ready HTML below the headline.
        figures: Numbers by their names, texts.
        sections: Name in the menu and ready HTML by id; those without HTML are left out of the menu.
        data: JSON for the cards of files, safe inside a script element.
    """

    title: str
    folder: str
    kicker: str
    headline: str
    footer: str
    verdict: str
    figures: list[tuple[str, str]]
    sections: Mapping[str, tuple[str, str]]
    data: str


def render(page: Page) -> str:
    """Return the page as HTML."""
    script = _asset("report.js")
    values = {
        "title": esc(page.title),
        "folder": esc(page.folder),
        "kicker": esc(page.kicker),
        "headline": esc(page.headline),
        "verdict": page.verdict,
        "figures": "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in page.figures),
        "footer": esc(page.footer),
        "style": _asset("report.css"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": page.data,
        "nav": "".join(f'<a href="#{ident}">{esc(name)}</a>' for ident, (name, body) in page.sections.items() if body),
        "sections": "\n".join(body for _, body in page.sections.values()),
    }
    return Template(_asset("report.html")).substitute(values)


def replace(path: Path, data: bytes) -> None:
    """Write a file in one rename: whoever dies in the middle leaves the earlier one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def _asset(name: str) -> str:
    return resources.files("callboard.agents.digest").joinpath("page", name).read_text(encoding="utf-8")
