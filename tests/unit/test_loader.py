"""Modules with capabilities, and what is said about those that cannot be loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.runtime.errors import ActorDefinitionError, ModuleLoadError
from callboard.runtime.loader import load_parts

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
    assert [c.name for c in load_parts(["loader_one", "loader_two.py"]).capabilities] == ["one", "two"]


def test_a_file_does_not_take_the_place_of_a_library(folder: Path) -> None:
    (folder / "json.py").write_text(GOOD.format(name="mine"))
    assert [c.name for c in load_parts([str(folder / "json.py")]).capabilities] == ["mine"]
    import json

    assert json.loads("1") == 1


def test_one_name_in_two_modules_is_refused(folder: Path) -> None:
    for name in ("loader_a", "loader_b"):
        (folder / f"{name}.py").write_text(GOOD.format(name="same"))
    with pytest.raises(ModuleLoadError, match=r"loader_b\.py and loader_a\.py both have a capability 'same'"):
        load_parts(["loader_a.py", "loader_b.py"])


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
        load_parts(["loader_bad.py"])


def test_a_missing_module_is_answered_with_what_is_there(folder: Path) -> None:
    (folder / "loader_near.py").write_text(GOOD.format(name="near"))
    with pytest.raises(ModuleLoadError, match="there is no module 'loader_far'"):
        load_parts(["loader_far"])
    with pytest.raises(ModuleLoadError, match=r"no module 'loader_near\.sub'"):
        load_parts(["loader_near.sub"])


def test_a_module_that_raises_what_is_no_exception_is_named(folder: Path) -> None:
    (folder / "panics.py").write_text("class Panic(BaseException): ...\nraise Panic('boo')\n")
    with pytest.raises(ModuleLoadError, match="cannot be imported: Panic: boo"):
        load_parts(["panics.py"])


ACTOR = """
from msgspec import Struct
from callboard import Actor, on
class Ask(Struct):
    text: str
class {name}(Actor):
    @on
    async def hello(self, m: Ask) -> str:
        return m.text
"""


def test_actors_are_loaded_beside_capabilities(folder: Path) -> None:
    (folder / "loader_actor.py").write_text(ACTOR.format(name="LoaderGreeter"))
    (folder / "loader_both.py").write_text(ACTOR.format(name="LoaderClerk") + GOOD.format(name="one"))
    parts = load_parts(["loader_actor.py", "loader_both"])
    assert [actor.actor_name for actor in parts.actors] == ["loader-greeter", "loader-clerk"]
    assert parts.names == (frozenset({"one"}), frozenset({"loader-greeter", "loader-clerk"}))


def test_one_actor_name_in_two_modules_is_refused(folder: Path) -> None:
    for name in ("loader_c", "loader_d"):
        (folder / f"{name}.py").write_text(ACTOR.format(name="Twin"))
    with pytest.raises(ModuleLoadError, match=r"loader_d\.py and loader_c\.py both have an actor 'twin'"):
        load_parts(["loader_c.py", "loader_d.py"])


def test_an_imported_base_is_not_hosted_and_an_imported_actor_is(folder: Path) -> None:
    (folder / "loader_base.py").write_text(ACTOR.format(name="Base") + ACTOR.format(name="Shared"))
    (folder / "loader_sub.py").write_text("from loader_base import Base, Shared\nclass Sub(Base): ...\n")
    assert [actor.actor_name for actor in load_parts(["loader_sub"]).actors] == ["shared", "sub"]


def test_a_bad_actor_is_reported_with_its_file(folder: Path) -> None:
    (folder / "loader_bad.py").write_text(ACTOR.format(name="Clerk").replace("m: Ask", "m: 'Nowhere'"))
    with pytest.raises(ActorDefinitionError, match=r"loader_bad: Clerk\.hello: its message type .* cannot be resolved"):
        load_parts(["loader_bad"])
    (folder / "loader_worse.py").write_text("from callboard import Actor\nclass Clerk(Actor): ...\n")
    with pytest.raises(ModuleLoadError, match=r"(?s)loader_worse.*Clerk handles nothing.*loader_worse\.py"):
        load_parts(["loader_worse"])


def test_a_bad_class_is_reported_by_its_own_line_and_none_of_ours(folder: Path) -> None:
    (folder / "loader_twice.py").write_text(
        ACTOR.format(name="Clerk") + "\n    @on\n    async def nope(self, m): ...\n"
    )
    with pytest.raises(ModuleLoadError, match=r"Clerk\.nope does not say which message") as caught:
        load_parts(["loader_twice"])
    assert "class Clerk(Actor" in str(caught.value)
    assert "__init_subclass__" not in str(caught.value)


def test_a_module_with_nothing_to_serve_is_told_what_to_put_there(folder: Path) -> None:
    (folder / "loader_empty.py").write_text("x = 1\n")
    with pytest.raises(ModuleLoadError, match=r"loader_empty has no capability and no actor: put @capability"):
        load_parts(["loader_empty"])


def test_of_a_folder_every_file_is_taken_and_a_broken_one_reported(folder: Path) -> None:
    there = folder / "crew"
    there.mkdir()
    (there / "loader_good.py").write_text(GOOD.format(name="good"))
    (there / "loader_helper.py").write_text("VALUE = 1\n")
    (there / "loader_ruin.py").write_text("def (\n")
    (there / "loader_same.py").write_text(GOOD.format(name="good"))
    (there / "test_loader_good.py").write_text("raise ValueError\n")
    (there / "_loader_hidden.py").write_text("raise ValueError\n")
    parts = load_parts(["crew"])
    assert [c.name for c in parts.capabilities] == ["good"]
    assert [skipped.name for skipped in parts.skipped] == ["crew/loader_ruin.py", "crew/loader_same.py"]
    assert "SyntaxError" in str(parts.skipped[0].error)
    assert "both have a capability 'good'" in str(parts.skipped[1].error)
    assert parts.sources == {"capability good": "crew/loader_good.py"}


def test_what_could_be_used_before_is_not_left_out(folder: Path) -> None:
    there = folder / "crew2"
    there.mkdir()
    (there / "loader_fine.py").write_text(GOOD.format(name="fine"))
    (there / "loader_ruined.py").write_text("def (\n")
    with pytest.raises(ModuleLoadError, match="SyntaxError"):
        load_parts(["crew2/"], whole={"crew2/loader_ruined.py"})


def test_a_folder_without_anything_to_serve_is_an_error(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ModuleLoadError, match=r"empty has 0 \.py files and has no capability"):
        load_parts(["empty"])
    (folder / "empty" / "loader_bad.py").write_text("def (\n")
    with pytest.raises(ModuleLoadError, match="SyntaxError"):
        load_parts(["empty"])


def test_a_file_that_another_imports_is_loaded_once(folder: Path) -> None:
    there = folder / "pair"
    there.mkdir()
    (there / "loader_a1.py").write_text("from loader_b1 import b1\n" + GOOD.format(name="a1"))
    (there / "loader_b1.py").write_text(GOOD.format(name="b1"))
    parts = load_parts(["pair"])
    assert sorted(c.name for c in parts.capabilities) == ["a1", "b1"]
    assert parts.skipped == ()


def test_installed_packages_offer_parts_by_entry_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "loader_offered.py").write_text(GOOD.format(name="offered"))
    info = folder / "offers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1\n")
    lines = "[callboard.agents]\none = loader_offered:offered\ntwo = loader_offered_not:nothing\n"
    (info / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(folder))
    parts = load_parts(["@installed"])
    assert [c.name for c in parts.capabilities] == ["offered"]
    assert [skipped.name for skipped in parts.skipped] == ["callboard.agents:two"]
