"""Time is read and waited for in clock.py only, so that every test can hand in a clock of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLOCK = ROOT / "src" / "callboard" / "runtime" / "clock.py"
IN_SOURCE = {
    "time.time",
    "time.time_ns",
    "time.sleep",
    "asyncio.sleep",
    "datetime.now",
    "datetime.utcnow",
    "date.today",
}
IN_TESTS = {"time.sleep"}


def _calls(source: str, forbidden: set[str]) -> Iterator[str]:
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module in {"time", "asyncio"}
    }
    # spelling a call out is dear, and nearly all end in another word
    ends = {name.rpartition(".")[2] for name in forbidden} | set(imported)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _end(node.func) in ends:
            name = ast.unparse(node.func)
            name = imported.get(name, name).removeprefix("datetime.datetime.").removeprefix("dt.")
            is_yield = name == "asyncio.sleep" and ast.unparse(node.args[0]) == "0"
            if name in forbidden and not is_yield:
                yield f"{node.lineno}: {name}"


def _end(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _strays(folder: Path, forbidden: set[str], *, but: Path | None = None) -> dict[str, list[str]]:
    found = {
        path.relative_to(ROOT).as_posix(): list(_calls(path.read_text("utf-8"), forbidden))
        for path in sorted(folder.rglob("*.py"))
        if path != but
    }
    return {name: calls for name, calls in found.items() if calls}


def test_only_the_clock_reads_wall_time_or_sleeps() -> None:
    assert _strays(ROOT / "src", IN_SOURCE, but=CLOCK) == {}


def test_no_test_blocks() -> None:
    assert _strays(ROOT / "tests", IN_TESTS) == {}


def test_the_check_sees_a_sleep() -> None:
    """Negative control."""
    assert list(_calls("import asyncio\nasyncio.sleep(1)", IN_SOURCE))
    assert list(_calls("from asyncio import sleep as nap\nnap(1)", IN_SOURCE))
    assert list(_calls("from datetime import datetime\ndatetime.now()", IN_SOURCE))
    assert not list(_calls("import asyncio\nasyncio.sleep(0)", IN_SOURCE))
    assert list(_calls(CLOCK.read_text("utf-8"), IN_SOURCE))
