"""Documents point at things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from callboard.cli.main import cli

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PRESENT = ["README.md", "LICENSE", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"] + [
    f"docs/{name}.md"
    for name in (
        "quickstart",
        "actors",
        "concepts",
        "delivery",
        "operations",
        "configuration",
        "metrics",
        "steps",
        "wire",
        "registry",
        "security",
        "models",
    )
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


def _unknown_commands(text: str) -> list[str]:
    unknown = []
    spans = re.findall(r"`(callboard [^`]+)`|^((?:\.venv/bin/)?callboard .+)$", text, flags=re.MULTILINE)
    for span in (inline or line for inline, line in spans):
        group: click.Command = cli
        for word in span.split()[1:]:
            if not isinstance(group, click.Group):
                break
            if not re.fullmatch(r"[a-z]+", word):
                break
            found = group.get_command(click.Context(group), word)
            if found is None:
                unknown.append(span)
                break
            group = found
    return unknown


def _unknown_subcommands(text: str) -> list[str]:
    """Find what stands without the program's name: `workers ls`, where `workers` is a group of commands."""
    unknown = []
    for group, word in re.findall(r"`([a-z]+) ([a-z]+)\b[^`]*`", text):
        found = cli.get_command(click.Context(cli), group)
        if isinstance(found, click.Group) and found.get_command(click.Context(found), word) is None:
            unknown.append(f"{group} {word}")
    return unknown


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_its_commands_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    # the list of changes names what is gone
    gone = [] if path.name == "CHANGELOG.md" else _unknown_subcommands(text)
    assert _unknown_commands(text) + gone == []


def test_the_commands_that_messages_name_exist() -> None:
    unknown = {path.name: _unknown_commands(path.read_text("utf-8")) for path in SOURCES}
    assert {name: found for name, found in unknown.items() if found} == {}


def test_the_check_sees_an_unknown_command() -> None:
    """Negative control."""
    assert _unknown_commands("`callboard dead list` shows")
    assert _unknown_commands("callboard devel   # a server")
    assert _unknown_subcommands("as `worker ls` shows") == ["worker ls"]
    assert not _unknown_subcommands("`workers scale NAME 2`, `worker start hello.py`, `up and down`")
    assert not _unknown_commands("`callboard dead ls`, `callboard submit count-words`, `callboard --help`")
