"""What happens to the standard streams: closed, cut short, shared with modules, read by a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.cli.output import visible
from tests.acceptance.console import Console, eventually

CHATTY = """
import sys
print("at import")
from callboard import capability

@capability("chat")
async def chat() -> int:
    print("in the handler")
    return 1
"""

SHOW = r"""
from callboard.cli.output import table, tell
table([["a\x1b[31mb"]], head=["ID"], empty="none")
tell("x\x1b[2Jy")
"""


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    found = Console(tmp_path)
    yield found
    found.close()


def _shell(console: Console, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("callboard", f"{sys.executable} -m callboard", 1)],
        cwd=console.folder,
        env=console.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", ["config show", "schema record", "config show --json"])
def test_a_reader_that_has_seen_enough_is_no_failure(console: Console, command: str) -> None:
    # the pipe's reader is gone before the first byte comes
    run = _shell(console, f"callboard {command} > >(exec true); exit $?")
    assert (run.returncode, run.stderr.strip()) == (0, "")


@pytest.mark.parametrize("command", ["config show", "config show --json", "schema record"])
def test_a_closed_standard_output_is_no_failure(console: Console, command: str) -> None:
    run = _shell(console, f"callboard {command} >&-")
    assert (run.returncode, run.stderr.strip()) == (0, "")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_modules_and_handlers_print_does_not_stand_between_the_events(console: Console, processes: str) -> None:
    (console.folder / "chatty.py").write_text(CHATTY)
    console.up()
    worker = console.start("worker", "start", "chatty.py", "--json", "--processes", processes)
    eventually(lambda: len(worker.events) >= int(processes), worker.err)
    assert console.run("submit", "chat", "--wait").status == 0
    eventually(lambda: any("in the handler" in line for line in worker.err), worker.err)
    assert worker.stop() == 0
    assert all(json.loads(line) for line in worker.out)


def test_what_somebody_else_wrote_gives_a_terminal_no_orders(console: Console) -> None:
    assert visible("a\x1b[31mb\x9b\r\x7f\tc\n") == "a\\x1b[31mb\\x9b\\x0d\\x7f\tc\n"
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=console.env | {"TERM": "dumb"}, stdout=theirs, check=True, timeout=30
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "a\\x1b[31mb" in shown
    assert "x\\x1b[2Jy" in shown
    assert "\x1b[31m" not in shown
