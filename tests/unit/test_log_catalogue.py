"""Event names are an interface: well formed, unique, and the only names that are logged."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from callboard.runtime import events

SRC = Path(__file__).parents[2] / "src"
NAME = re.compile(r"callboard\.v1\.[a-z][a-z_]*\.[a-z][a-z_]*")
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
CONSTANTS = {name: value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}


def test_every_name_is_well_formed() -> None:
    assert CONSTANTS
    assert [value for value in CONSTANTS.values() if not NAME.fullmatch(value)] == []


def test_every_name_is_unique_and_in_the_catalogue() -> None:
    assert len(set(CONSTANTS.values())) == len(CONSTANTS)
    assert frozenset(CONSTANTS.values()) == events.CATALOGUE


def test_a_constant_is_called_as_its_value_reads() -> None:
    for name, value in CONSTANTS.items():
        noun, verb = value.split(".")[2:]
        words = set(name.lower().split("_"))
        assert words & set(noun.split("_")), name
        assert words & set(verb.split("_")), name


def _logged(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and source of the first argument of every call of a logger's method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            owner = ast.unparse(node.func.value).split(".")[-1].split("(")[0]
            if owner.strip("_").lower() in {"log", "logger", "bind"}:
                yield node.lineno, ast.unparse(node.args[0]) if node.args else ""


def _strays(source: str) -> list[str]:
    found = []
    for line, argument in _logged(ast.parse(source)):
        name = argument.removeprefix("events.")
        if not (argument.startswith("events.") and name in CONSTANTS):
            found.append(f"{line}: {argument}")
    return found


def test_only_names_of_the_catalogue_are_logged() -> None:
    strays = {str(path.relative_to(SRC)): _strays(path.read_text("utf-8")) for path in SRC.rglob("*.py")}
    assert {path: found for path, found in strays.items() if found} == {}


def test_every_name_of_the_catalogue_is_logged_somewhere() -> None:
    """People alert on these names: one that never comes is worse than none."""
    code = "\n".join(path.read_text("utf-8") for path in SRC.rglob("*.py") if path.name != "events.py")
    assert [name for name in CONSTANTS if not re.search(rf"\bevents\.{name}\b", code)] == []


def test_the_check_sees_a_stray_name() -> None:
    """Negative control."""
    assert _strays("self._log.info('hello')")
    assert _strays("log.bind(a=1).error(events.NO_SUCH)")
    assert not _strays("log.info(events.TASK_RETRIED, task=x)")


def test_a_logger_costs_no_import_of_structlog() -> None:
    code = "import sys; from callboard.runtime import logs; logs.get_logger('x'); sys.exit('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
