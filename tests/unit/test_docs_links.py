"""Documents point at things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PRESENT = ["README.md", "LICENSE", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"] + [
    f"docs/{name}.md"
    for name in ("quickstart", "concepts", "delivery", "operations", "configuration", "metrics", "wire")
]


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _dead(path: Path, text: str) -> list[str]:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        if not found.exists() or (anchor and anchor not in _anchors(found.read_text("utf-8"))):
            dead.append(target)
    return dead


@pytest.mark.parametrize("name", PRESENT)
def test_it_is_there_and_not_empty(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_its_links_lead_somewhere(path: Path) -> None:
    assert _dead(path, path.read_text("utf-8")) == []


def test_the_check_sees_a_dead_link() -> None:
    """Negative control."""
    assert _dead(ROOT / "README.md", "[x](docs/nowhere.md) [y](README.md#no-such-title)") != []
