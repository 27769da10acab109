"""File tools stay in their folder, whatever path they are given and whatever happens to it meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callboard.agents.errors import PathDeniedError, ToolArgumentError, ToolError
from callboard.agents.tools.builtin import files
from callboard.agents.tools.builtin.folder import Folder
from callboard.agents.tools.builtin.search import search_files
from callboard.agents.tools.context import ToolContext
from callboard.runtime.actor.turn_api import TurnApi

SECRET = "the secret"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "outside.txt").write_text(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "deep.txt").write_text(SECRET)
    root = tmp_path / "root"
    (root / "notes").mkdir(parents=True)
    (root / "notes" / "a.txt").write_text("one\ntwo\nthree\n")
    (root / "link.txt").symlink_to("../outside.txt")
    (root / "linked").symlink_to("../outside")
    (root / "inner").symlink_to("notes")
    return root


def context(root: Path | None) -> ToolContext:
    return ToolContext(key="k", address="agent/a", folder=root)


BAD = [
    "..",
    "../outside.txt",
    "notes/../../outside.txt",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "~/.ssh/id_rsa",
    "link.txt",
    "linked/deep.txt",
    "inner/a.txt",
    "notes/a.txt\0.png",
    "\\\\server\\share",
    "a" * 5000,
    "/".join("a" * 100),
    "\ud800",
    "",
    ".",
    "./",
]


@pytest.mark.parametrize("path", BAD, ids=[ascii(path[:24]) for path in BAD])
async def test_no_path_leads_out(house: Path, path: str) -> None:
    before = sorted(house.parent.rglob("*"))
    with pytest.raises(PathDeniedError):
        files.read_file(path, context(house))
    with pytest.raises((PathDeniedError, ToolError)):
        files.write_file(path, "x", context(house))
    with pytest.raises((PathDeniedError, ToolError)):
        await files.edit_file(path, SECRET, "x", context(house))
    assert sorted(house.parent.rglob("*")) == before
    assert (house.parent / "outside.txt").read_text() == SECRET


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(["..", ".", "", "/", "~", "notes", "linked", "inner", "link.txt", "a.txt", "deep.txt", "\0"])
        | st.text(max_size=5)
    )
)
def test_any_path_reads_what_is_inside_or_nothing(house: Path, parts: list[str]) -> None:
    try:
        found = files.read_file("/".join(parts), context(house))
    except ToolError:
        return
    assert found == "one\ntwo\nthree"


def test_links_are_named_and_not_entered(house: Path) -> None:
    found = files.list_files(context(house), depth=9).splitlines()
    assert found == ["inner@", "link.txt@", "linked@", "notes/", "notes/a.txt  14 bytes"]
    assert "secret" not in search_files("secret", context(house))
    with pytest.raises(PathDeniedError):
        files.list_files(context(house), "linked")


def test_a_link_that_comes_between_look_and_use_leads_nowhere(house: Path) -> None:
    """Swap a folder for a link to the outside all the time: a read gets the inner file or an error, never the outer."""
    (house / "swap").mkdir()
    (house / "swap" / "deep.txt").write_text("inner")
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            try:
                (house / "swap").rename(house / "aside")
                (house / "swap").symlink_to("../outside")
                (house / "swap").unlink()
                (house / "aside").rename(house / "swap")
            except OSError:
                # a write has made the missing folder meanwhile
                while (house / "aside").exists():
                    shutil.rmtree(house / "swap", ignore_errors=True)
                    with contextlib.suppress(OSError):
                        (house / "aside").rename(house / "swap")

    thread = threading.Thread(target=swap)
    thread.start()
    folder = Folder(house)
    ends = set()
    try:
        for _ in range(3000):
            try:
                ends.add(folder.read("swap/deep.txt", max_bytes=100)[0])
                folder.write("swap/deep.txt", b"inner")
            except ToolError as error:
                ends.add(type(error).__name__.encode())
    finally:
        is_over.set()
        thread.join()
    assert ends <= {b"inner", b"PathDeniedError", b"ToolError"}
    assert b"inner" in ends
    assert (house.parent / "outside" / "deep.txt").read_text() == SECRET


def test_the_check_by_whole_path_would_have_been_fooled(house: Path) -> None:
    """The control: the usual resolve-then-open lets the secret out when the link comes in between."""
    path = house / "notes" / "b.txt"
    path.write_text("inner")
    assert path.resolve().is_relative_to(house.resolve())
    path.unlink()
    path.symlink_to("../../outside.txt")
    assert path.read_text() == SECRET
    with pytest.raises(PathDeniedError):
        files.read_file("notes/b.txt", context(house))


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused(house: Path) -> None:
    os.mkfifo(house / "pipe")
    for name in ("pipe", "notes"):
        with pytest.raises(ToolError):
            files.read_file(name, context(house))
        with pytest.raises(ToolError):
            files.write_file(name, "x", context(house))


def test_files_are_read_and_written(house: Path) -> None:
    here = context(house)
    assert files.write_file("new/deep/b.txt", "text ä\n", here) == "wrote 8 bytes to new/deep/b.txt"
    assert files.read_file("./new//deep/b.txt", here) == "text ä"
    assert files.read_file("notes/a.txt", here, first_line=2, lines=1) == "two\n[1 more lines]"
    assert sorted(path.name for path in (house / "new" / "deep").iterdir()) == ["b.txt"]
    (house / "notes" / "a.txt").chmod(0o755)
    files.write_file("notes/a.txt", "x", here)
    assert (house / "notes" / "a.txt").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("path", [".git/config", ".git/hooks/pre-commit", "sub/.GIT/config", ".git"])
def test_git_is_not_written_by_hand(house: Path, path: str) -> None:
    with pytest.raises(PathDeniedError):
        files.write_file(path, "x", context(house))


def test_sizes_have_limits(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_READ_BYTES", 10)
    monkeypatch.setattr(files, "MAX_WRITE_BYTES", 10)
    with pytest.raises(ToolError, match="too large"):
        files.read_file("notes/a.txt", context(house))
    with pytest.raises(ToolArgumentError, match="too many"):
        files.write_file("b.txt", "x" * 11, context(house))
    (house / "binary").write_bytes(b"a\0b")
    with pytest.raises(ToolError, match="NUL"):
        files.read_file("binary", context(house))


def test_without_a_folder_there_is_nothing_to_read() -> None:
    with pytest.raises(PathDeniedError, match="no folder"):
        files.read_file("a.txt", context(None))


async def test_an_edit_changes_the_one_place(house: Path) -> None:
    here = context(house)
    assert await files.edit_file("notes/a.txt", "two", "two and a half", here) == "edited notes/a.txt"
    assert (house / "notes" / "a.txt").read_text() == "one\ntwo and a half\nthree\n"
    for old in ("", "none such", "e"):
        with pytest.raises(ToolArgumentError, match="once"):
            await files.edit_file("notes/a.txt", old, "x", here)


class Kept:
    """A turn that has decided before, as after a crash."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    async def step(self, name: str, fn: Callable[[], object]) -> object:
        if name not in self.values:
            self.values[name] = fn()
        return self.values[name]


async def test_an_edit_that_is_run_again_finds_its_own_work(house: Path) -> None:
    here = ToolContext(key="k", address="agent/a", folder=house, turn=cast("TurnApi", Kept()))
    for _ in range(2):
        await files.edit_file("notes/a.txt", "two", "two two", here)
        # without its memory the second run would find the place twice, or make it four
        assert (house / "notes" / "a.txt").read_text() == "one\ntwo two\nthree\n"
    (house / "notes" / "a.txt").write_text("other")
    with pytest.raises(ToolError, match="somebody else"):
        await files.edit_file("notes/a.txt", "two", "two two", here)


def test_a_search_cites_file_and_line(house: Path) -> None:
    (house / "notes" / "long.md").write_text("\n".join(f"line {n}" for n in range(1, 60)) + "\nthe zebra sleeps\n")
    (house / "notes" / "b.md").write_text("nothing here but line and line\n")
    found = search_files("zebra line", context(house))
    assert found.startswith("notes/long.md:")
    first = found.splitlines()[0]
    assert "zebra" in found.split("\n\n")[0] or int(first.rsplit(":")[-1]) > 40
    assert search_files("absent", context(house)) == "nothing found"
    with pytest.raises(ToolArgumentError):
        search_files(" . ", context(house))
