"""Modules with capabilities, and what is said about those that cannot be loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.runtime.errors import ActorDefinitionError, ModuleLoadError
from callboard.runtime.loader import load_capabilities, load_module_parts

GOOD = "from callboard import capability\n@capability\ndef {name}(x: int) -> int:\n    return x\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith("callboard."):
            del sys.modules[name]


def test_a_dotted_module_and_a_file_are_loaded(folder: Path) -> None:
    (folder / "loader_one.py").write_text(GOOD.format(name="one"))
    (folder / "loader_two.py").write_text("import loader_one\n" + GOOD.format(name="two"))
    assert [c.name for c in load_capabilities(["loader_one", "loader_two.py"])] == ["one", "two"]


def test_a_file_does_not_take_the_place_of_a_library(folder: Path) -> None:
    (folder / "json.py").write_text(GOOD.format(name="mine"))
    assert [c.name for c in load_capabilities([str(folder / "json.py")])] == ["mine"]
    import json

    assert json.loads("1") == 1


def test_one_name_in_two_modules_is_refused(folder: Path) -> None:
    for name in ("loader_a", "loader_b"):
        (folder / f"{name}.py").write_text(GOOD.format(name="same"))
    with pytest.raises(ModuleLoadError, match=r"loader_b\.py and loader_a\.py both have a capability 'same'"):
        load_capabilities(["loader_a.py", "loader_b.py"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "has no capability"),
        ("raise ValueError('no key')\n", r"ValueError: no key\n.*line 1"),
        ("import loader_absent_thing\n", "No module named 'loader_absent_thing'"),
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3"),
        ("from callboard import capability\n@capability('Not Good')\ndef f(): ...\n", "not usable"),
    ],
)
def test_a_module_that_cannot_be_used_is_named_with_the_cause(folder: Path, text: str, said: str) -> None:
    (folder / "loader_bad.py").write_text(text)
    with pytest.raises(ModuleLoadError, match=f"(?s)loader_bad.*{said}"):
        load_capabilities(["loader_bad.py"])


def test_a_missing_module_is_answered_with_what_is_there(folder: Path) -> None:
    (folder / "loader_near.py").write_text(GOOD.format(name="near"))
    with pytest.raises(ModuleLoadError, match="there is no module 'loader_far'"):
        load_capabilities(["loader_far"])
    with pytest.raises(ModuleLoadError, match=r"no module 'loader_near\.sub'"):
        load_capabilities(["loader_near.sub"])
    with pytest.raises(ModuleLoadError, match="is a folder"):
        load_capabilities(["./"])


def test_a_module_that_raises_what_is_no_exception_is_named(folder: Path) -> None:
    (folder / "panics.py").write_text("class Panic(BaseException): ...\nraise Panic('boo')\n")
    with pytest.raises(ModuleLoadError, match="cannot be imported: Panic: boo"):
        load_capabilities(["panics.py"])


ACTOR = (
    "from typing import Any\nfrom callboard import Actor, on\n"
    "class {name}(Actor):\n    @on\n    def take(self, m: {kind}) -> None: ...\n"
)


def test_actors_are_loaded_beside_capabilities(folder: Path) -> None:
    (folder / "loader_mixed.py").write_text(GOOD.format(name="one") + ACTOR.format(name="Clerk", kind="str"))
    (folder / "loader_actors.py").write_text(
        "from loader_mixed import Clerk\n" + ACTOR.format(name="Boss", kind="Any") + "class Head(Clerk): ...\n"
    )
    parts = load_module_parts(["loader_mixed", "loader_actors.py", "loader_mixed"])
    assert [c.name for c in parts.capabilities] == ["one"]
    assert [cls.__name__ for cls in parts.actors] == ["Clerk", "Boss", "Head"]


def test_two_actors_of_one_name_are_told_apart_by_their_files(folder: Path) -> None:
    for name in ("loader_a", "loader_b"):
        (folder / f"{name}.py").write_text(ACTOR.format(name="Clerk", kind="str"))
    with pytest.raises(ModuleLoadError, match="loader_b and loader_a both have an actor 'clerk': rename one"):
        load_module_parts(["loader_a", "loader_b"])


def test_a_bad_actor_is_reported_with_its_file(folder: Path) -> None:
    (folder / "loader_bad.py").write_text(ACTOR.format(name="Clerk", kind="'Nowhere'"))
    with pytest.raises(ActorDefinitionError, match=r"loader_bad: Clerk\.take: its message type .* cannot be resolved"):
        load_module_parts(["loader_bad"])
    (folder / "loader_worse.py").write_text("from callboard import Actor\nclass Clerk(Actor): ...\n")
    with pytest.raises(ModuleLoadError, match=r"(?s)loader_worse.*Clerk handles nothing.*loader_worse\.py"):
        load_module_parts(["loader_worse"])


def test_a_module_with_nothing_to_serve_is_told_what_to_put_there(folder: Path) -> None:
    (folder / "loader_empty.py").write_text("x = 1\n")
    with pytest.raises(ModuleLoadError, match=r"loader_empty has no capability and no actor: .*extends Actor"):
        load_module_parts(["loader_empty"])
    (folder / "loader_actors.py").write_text(ACTOR.format(name="Clerk", kind="str"))
    with pytest.raises(ModuleLoadError, match="loader_actors has no capability"):
        load_capabilities(["loader_actors"])
