"""Five levels by twelve tools, and the fixed order of the rules: denied, allowed, level, no."""

from __future__ import annotations

from typing import get_args

import pytest

from callboard.agents.errors import ToolDefinitionError, ToolDeniedError
from callboard.agents.tools.base import Tool
from callboard.agents.tools.builtin.files import edit_file, list_files, read_file, write_file
from callboard.agents.tools.builtin.git import git_commit, git_diff, git_log
from callboard.agents.tools.builtin.http import fetch_page, send_json
from callboard.agents.tools.builtin.python import run_python
from callboard.agents.tools.builtin.search import search_files
from callboard.agents.tools.decorator import tool
from callboard.agents.tools.permission import LEVELS, Level, Permissions


@tool(category="money", action="spend")
def refund(amount: int) -> str:
    """Pay money back."""
    return f"{amount}"


TOOLS = (
    list_files,
    read_file,
    search_files,
    git_log,
    git_diff,
    write_file,
    edit_file,
    git_commit,
    fetch_page,
    run_python,
    send_json,
    refund,
)
# y: may be called. In the order of TOOLS.
TABLE: dict[Level, str] = {
    "sandboxed": "nnnnnnnnnynn",
    "restricted": "yyyyynnnnnnn",
    "standard": "yyyyyyyyyynn",
    "elevated": "yyyyyyyyyyyy",
    "custom": "nnnnnnnnnnnn",
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(LEVELS) == set(get_args(Level))
    assert {len(row) for row in TABLE.values()} == {len(TOOLS)} == {12}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", range(12), ids=[each.name for each in TOOLS])
def test_a_level_lets_through_what_the_table_says(level: Level, number: int) -> None:
    one = TOOLS[number]
    expected = TABLE[level][number] == "y"
    by_level = Permissions(level=level)
    assert may(by_level, one) is expected
    # allowed beats the level, denied beats both, by name and by group
    for entry in (one.name, f"{one.category}:{one.action}", f"{one.category}:*", f"*:{one.action}", "*:*"):
        assert may(Permissions(level=level, allowed=(entry,)), one)
        assert not may(Permissions(level=level, denied=(entry,)), one)
        assert not may(Permissions(level=level, allowed=(one.name,), denied=(entry,)), one)
    # of no concern
    other = Permissions(level=level, allowed=("other_tool", "other:*"), denied=("another", "another:read"))
    assert may(other, one) is expected


def may(permissions: Permissions, one: Tool) -> bool:
    """Return whether a tool may be called; what is hidden is refused, and the reverse."""
    if permissions.visible([one]) == (one,):
        permissions.check(one)
        return True
    with pytest.raises(ToolDeniedError) as caught:
        permissions.check(one)
    assert (caught.value.tool, caught.value.rule) == (one.name, permissions.rule(one))
    return False


@pytest.mark.parametrize(
    ("permissions", "rule"),
    [
        (Permissions(level="elevated", denied=("refund",)), "denied"),
        (Permissions(level="custom", allowed=("read_file",)), "not_allowed"),
        (Permissions(level="restricted"), "level"),
        (Permissions(level="sandboxed"), "level"),
    ],
)
def test_a_refusal_says_which_rule(permissions: Permissions, rule: str) -> None:
    with pytest.raises(ToolDeniedError, match="refund") as caught:
        permissions.check(refund)
    assert caught.value.rule == rule


def test_a_tool_of_no_known_category_is_refused_below_elevated() -> None:
    odd = tool(category="odd")(refund.function)
    assert [level for level in LEVELS if may(Permissions(level=level), odd)] == ["elevated"]


@pytest.mark.parametrize("entry", ["", "Refund", "money:spending", "a:b:c", "money.*", "re fund", "x" * 65])
def test_an_entry_that_can_match_nothing_is_refused(entry: str) -> None:
    for lists in ({"denied": (entry,)}, {"allowed": (entry,)}):
        with pytest.raises(ToolDefinitionError):
            Permissions(**lists)  # type: ignore[arg-type]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="sandboxed, restricted"):
        Permissions(level="root")  # type: ignore[arg-type]
