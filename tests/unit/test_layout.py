"""The house rules that a linter does not know; part of `make check`."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "callboard"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "tools_common"}

# Spelled in pieces, or this file would break its own rule.
_SLASH = "/"
_HOSTED = "python{}".format("hosted")
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", _HOSTED, "org"),
        (_HOSTED, "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
        ("npmjs", "com"),
        ("proxy", "golang", "org"),
    )
]
PATHS = [_SLASH + name + _SLASH for name in ("work", "root", "home", "Users", "opt" + _SLASH + "wheels")]
# A path of a machine starts a word; the same name inside an address or a glob does not.
_PATH = re.compile(r"(?<![\w.}*~)-])(?:" + "|".join(map(re.escape, PATHS)) + r")\w")


def _tracked() -> list[Path]:
    """Return the files of the repository, as git lists them or, in an unpacked archive, as they lie there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", ".git", "node_modules", "__pycache__", "build", "dist"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


FILES = _tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Without its docstring: words are not what makes a function hard to follow.
            first = node.body[0]
            is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            words = ((first.end_lineno or 0) - first.lineno + 1) if is_doc else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - words
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name}: {lines}"


def _foreign(text: str) -> list[str]:
    return [host for host in HOSTS if host in text] + _PATH.findall(text)


def test_there_is_something_to_check() -> None:
    assert len([path for path in PYTHON if SRC in path.parents]) > 5


def test_no_file_is_longer_than_500_lines() -> None:
    long = {_name(path): n for path in PYTHON if (n := len(path.read_text("utf-8").splitlines())) > MAX_FILE_LINES}
    assert long == {}


def test_no_function_is_longer_than_50_lines() -> None:
    long = {_name(path): found for path in PYTHON if (found := list(_long_functions(path.read_text("utf-8"))))}
    assert long == {}


def test_the_check_of_functions_sees_a_long_one() -> None:
    """Negative control."""
    assert list(_long_functions("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES))
    assert not list(_long_functions('def f():\n    """' + "a\n" * 99 + '"""\n    return 1\n'))


@pytest.mark.parametrize("path", [p for p in PYTHON if p.name == "__init__.py" and p != SRC / "__init__.py"], ids=_name)
def test_an_init_file_holds_only_its_docstring(path: Path) -> None:
    body = ast.parse(path.read_text("utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_no_file_has_a_vague_name() -> None:
    assert [_name(path) for path in PYTHON if path.stem in VAGUE or path.parent.name in VAGUE] == []


def test_every_package_of_the_source_has_its_docstring() -> None:
    folders = {path.parent for path in PYTHON if SRC in path.parents}
    assert [_name(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_nothing_names_a_registry_or_a_path_of_one_machine() -> None:
    found = {}
    for path in FILES:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if strays := _foreign(text):
            found[_name(path)] = strays
    assert found == {}


def test_the_check_of_addresses_sees_one() -> None:
    """Negative control."""
    assert _foreign("--index-url https://" + HOSTS[0] + "/simple")
    assert _foreign("see " + PATHS[0] + "notes")
    assert not _foreign("a" + PATHS[0] + "b and ~" + PATHS[0] + "b")


@pytest.mark.parametrize(
    "name", [f"requirements{part}.lock" for part in ("", "-core", "-llm", "-image", "-image-build", "-audit")]
)
def test_a_lock_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "://" not in text
    assert "--index" not in text
    pins = re.findall(r"^\S+==\S+.*\\\n    --hash=sha256:", text, flags=re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[^\s#]", text, flags=re.MULTILINE))


def test_each_lock_pins_what_the_smaller_one_pins() -> None:
    pin = re.compile(r"^(\S+==\S+)", flags=re.MULTILINE)
    core, full, llm, image = (
        set(pin.findall((ROOT / name).read_text("utf-8")))
        for name in ("requirements-core.lock", "requirements.lock", "requirements-llm.lock", "requirements-image.lock")
    )
    assert core <= full <= llm
    assert image <= full
