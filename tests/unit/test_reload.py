"""Hot reload: what is seen, what is taken, and what happens to code that cannot be imported."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callboard.runtime.errors import CallboardError, ConfigError, ModuleLoadError
from callboard.runtime.loader import load_module
from callboard.runtime.reload import CALM_S, POLL_S, Reloader, Sources
from callboard.runtime.testing import FakeClock

MAIN = "import reload_part\nVALUE = ('{}', reload_part.VALUE)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    write(tmp_path / "reload_main.py", MAIN.format("main 1"))
    write(tmp_path / "reload_part.py", "VALUE = 'part 1'\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith("callboard."):
            del sys.modules[name]


class Stage:
    """A reloader on a fake clock, and what it did."""

    def __init__(self, folder: Path, target: str = "reload_main.py") -> None:
        self.clock = FakeClock()
        self.taken: list[object] = []
        self.reloaded: list[list[str]] = []
        self.failed: list[tuple[list[str], CallboardError]] = []
        self.refusal: CallboardError | None = None
        sources = Sources([target], cwd=folder)
        self.reloader: Reloader[object] = Reloader(sources, lambda: load_module(target).VALUE, clock=self.clock)

    async def take(self, parts: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(parts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(
            self.reloader.run(
                self.take,
                reloaded=lambda files: self.reloaded.append([file.name for file in files]),
                failed=lambda files, error: self.failed.append(([file.name for file in files], error)),
            )
        )
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def look(self) -> None:
        """Let it look once more, and wait for the files to be calm."""
        await self.clock.advance(POLL_S + CALM_S * 1.5)


def write(path: Path, text: str, *, age_s: float = 100.0) -> None:
    """Write a file with a time of its own, so that a change shows whatever the disk's clock does."""
    path.write_text(text)
    moment = path.stat().st_mtime - age_s
    os.utime(path, (moment, moment))


async def test_a_change_of_the_file_or_of_a_part_of_it_is_taken(folder: Path) -> None:
    stage = Stage(folder)
    assert stage.reloader.load() == ("main 1", "part 1")
    async with stage.running():
        await stage.look()
        assert stage.taken == []
        write(folder / "reload_main.py", MAIN.format("main 2"), age_s=50)
        await stage.look()
        assert stage.taken == [("main 2", "part 1")]
        write(folder / "reload_part.py", "VALUE = 'part 2'\n", age_s=50)
        await stage.look()
        assert stage.taken[1:] == [("main 2", "part 2")]
    assert stage.reloaded == [["reload_main.py"], ["reload_part.py"]]
    assert stage.failed == []


async def test_two_edits_of_equal_size_within_a_second_are_both_taken(folder: Path) -> None:
    stage = Stage(folder)
    stage.reloader.load()
    async with stage.running():
        for number in range(2, 6):
            (folder / "reload_part.py").write_text(f"VALUE = 'part {number}'\n")
            os.utime(folder / "reload_part.py", ns=(10**18 + number, 10**18 + number))
            await stage.look()
    assert [part for _, part in map(as_pair, stage.taken)] == ["part 2", "part 3", "part 4", "part 5"]
    assert not (folder / "__pycache__").exists()


def as_pair(value: object) -> tuple[str, str]:
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", "SyntaxError"),
        ("VALUE = nothing_of_that_name\n", "nothing_of_that_name"),
        ("import reload_not_there\n", "reload_not_there"),
        ("raise SystemExit(3)\n", "SystemExit"),
    ],
)
async def test_code_that_cannot_be_imported_is_told_and_the_old_one_stays(folder: Path, text: str, said: str) -> None:
    stage = Stage(folder)
    stage.reloader.load()
    before = sys.modules["reload_main"]
    async with stage.running():
        write(folder / "reload_part.py", text, age_s=50)
        await stage.look()
        assert stage.taken == []
        ((files, error),) = stage.failed
        assert files == ["reload_part.py"]
        assert isinstance(error, ModuleLoadError)
        assert said in str(error)
        assert sys.modules["reload_main"] is before
        await stage.look()
        assert len(stage.failed) == 1
        write(folder / "reload_part.py", "VALUE = 'mended'\n", age_s=25)
        await stage.look()
        assert stage.taken == [("main 1", "mended")]


async def test_a_missing_file_that_appears_mends_what_failed(folder: Path) -> None:
    stage = Stage(folder)
    stage.reloader.load()
    async with stage.running():
        write(folder / "reload_part.py", "from reload_new import VALUE\n", age_s=50)
        await stage.look()
        assert len(stage.failed) == 1
        write(folder / "reload_new.py", "VALUE = 'new'\n", age_s=25)
        await stage.look()
    assert stage.taken == [("main 1", "new")]


async def test_parts_that_are_refused_leave_the_old_modules(folder: Path) -> None:
    stage = Stage(folder)
    stage.reloader.load()
    before = sys.modules["reload_part"]
    stage.refusal = ConfigError("not these")
    async with stage.running():
        write(folder / "reload_part.py", "VALUE = 'part 2'\n", age_s=50)
        await stage.look()
    assert [str(error) for _, error in stage.failed] == ["not these"]
    assert sys.modules["reload_part"] is before


async def test_a_file_that_still_changes_is_left_alone(folder: Path) -> None:
    stage = Stage(folder)
    stage.reloader.load()
    async with stage.running():
        write(folder / "reload_part.py", "VALUE = 'half", age_s=50)
        await stage.clock.advance(POLL_S + CALM_S * 0.5)
        write(folder / "reload_part.py", "VALUE = 'whole'\n", age_s=40)
        await stage.clock.advance(CALM_S)
        assert (stage.taken, stage.failed) == ([], [])
        await stage.clock.advance(CALM_S)
    assert stage.taken == [("main 1", "whole")]
    assert stage.failed == []


@pytest.mark.parametrize(
    "make",
    [lambda folder: folder / ".venv" / "lib", lambda folder: folder / "site-packages", lambda folder: folder.parent],
)
def test_what_is_installed_or_lies_elsewhere_is_not_ours(folder: Path, make: Callable[[Path], Path]) -> None:
    sources = Sources(["reload_main.py"], cwd=folder)
    load_module("reload_main.py")
    assert set(sources.modules()) == {"reload_main", "reload_part"}
    module = sys.modules["reload_part"]
    module.__file__ = str(make(folder) / "reload_part.py")
    assert set(sources.modules()) == {"reload_main"}


def test_the_packages_own_modules_are_never_ours() -> None:
    import callboard

    assert callboard.__file__ is not None
    source = Path(callboard.__file__).parent
    assert not [name for name in Sources([], cwd=source.parent).modules() if name.startswith("callboard")]
