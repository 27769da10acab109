"""The agent that is killed, and its tools, which write down what they do; served by real worker processes.

What they need to know stands in the folder that ``AGENT_KILLS_FOLDER`` names: ``events`` is where each effect gets a
line, ``kill.json`` says in which call the process that makes it shall die, and when.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard import Agent, Task, ToolContext, tool
from callboard.agents.tools.permission import Permissions

FOLDER = "AGENT_KILLS_FOLDER"


class Kill(Struct, frozen=True, kw_only=True):
    """In which call of which run to die: before the effect, or after it and before it is recorded."""

    run: str
    number: int
    when: str


class Event(Struct, frozen=True, kw_only=True):
    """One line: ``begin`` (a run of the turn), ``note`` and ``send`` (effects), ``kill``."""

    kind: str
    run: str
    pid: int
    number: int = 0
    key: str = ""


def folder() -> Path:
    """Return the folder of the run."""
    return Path(os.environ[FOLDER])


def events(where: Path) -> list[Event]:
    """Return what was written so far."""
    path = where / "events"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Event) for line in lines]


def _write(kind: str, run: str, *, number: int = 0, key: str = "") -> None:
    line = msgspec.json.encode(Event(kind=kind, run=run, pid=os.getpid(), number=number, key=key)) + b"\n"
    # one write of less than a block: lines of two processes never mix, and none is lost with its process
    with (folder() / "events").open("ab", buffering=0) as file:
        _ = file.write(line)


def _die(run: str, number: int, when: str) -> None:
    path = folder() / "kill.json"
    if not path.exists():
        return
    wanted = msgspec.json.decode(path.read_bytes(), type=Kill)
    if wanted == Kill(run=run, number=number, when=when):
        path.unlink()
        _write("kill", run, number=number)
        os.kill(os.getpid(), signal.SIGKILL)


@tool(action="write", repeatable=True)
def note(run: str, number: int, context: ToolContext) -> str:
    """Write a note, under the call's key: a second time changes nothing.

    Args:
        run: The run.
        number: Number of the note.
        context: The call.
    """
    _die(run, number, "before")
    (folder() / "notes" / f"{run}-{number}").write_text(context.key)
    _write("note", run, number=number, key=context.key)
    _die(run, number, "after")
    return f"noted {number}"


@tool(action="communicate")
def send(run: str, number: int, context: ToolContext) -> str:
    """Send a letter, which cannot be taken back.

    Args:
        run: The run.
        number: Number of the letter.
        context: The call.
    """
    _die(run, number, "before")
    _write("send", run, number=number, key=context.key)
    _die(run, number, "after")
    return f"sent {number}"


class Clerk(Agent, name="clerk", tools=[note, send], permissions=Permissions(level="elevated")):
    """You write notes and send letters."""

    async def prepare(self, task: Task) -> None:
        """Write down who runs it."""
        _write("begin", task.text)
