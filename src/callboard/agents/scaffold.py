"""The first agent of a user: a file of some twenty lines, and a test of it that needs no key and no server."""

from __future__ import annotations

import keyword
from pathlib import Path

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.errors import InputError, InvalidNameError

_AGENT = '''\
"""The agent {name}.

`callboard dev {file}`, then `callboard ask {name}/ann Task '{{"text": "A wall of 3 by 4 metres"}}'`.
"""

from msgspec import Struct

from callboard import Agent, tool


class Estimate(Struct):
    """What the agent answers."""

    litres: float
    why: str


@tool
def area(width_m: float, height_m: float) -> float:
    """Area of a rectangle in square metres.

    Args:
        width_m: Width in metres.
        height_m: Height in metres.
    """
    return width_m * height_m


class {cls}(Agent, name="{name}", tools=[area], output=Estimate, capabilities=["{name}"]):
    """You estimate how much paint a room needs. A litre covers eight square metres. Work out areas with the tool."""
'''

_TEST = '''\
"""A test of the agent {name}, without a key: a scripted model says what a real one might."""

import asyncio

from callboard import AgentResult, Task, testing
from callboard.agents.llm.base import ToolCall
from callboard.agents.llm.scripted import Say, Scripted

from {module} import {cls}

MODEL = Scripted(
    [
        Say(tool_calls=(ToolCall(id="1", name="area", arguments='{{"width_m": 3, "height_m": 4}}'),)),
        Say(text='{{"litres": 1.5, "why": "12 square metres"}}', when="12"),
    ]
)


class Tried({cls}, name="{name}", model=MODEL):
    pass


async def ask(text: str) -> AgentResult:
    async with testing.world() as world:
        await world.start(Tried)
        return await world.actor("{name}/ann").ask(Task(text), returns=AgentResult)


def test_it_measures_before_it_estimates() -> None:
    found = asyncio.run(ask("A wall of 3 by 4 metres"))
    assert found.status == "done"
    assert found.output == {{"litres": 1.5, "why": "12 square metres"}}
    assert found.turns == 2
'''


class Written(Struct, frozen=True, kw_only=True):
    """The files, and what was left as it is because it was there."""

    agent: Path
    test: Path
    kept: tuple[Path, ...] = ()


def write(name: str, folder: Path) -> Written:
    """Write ``<name>.py`` and ``test_<name>.py`` into a folder, which is made if need be. What exists stays.

    Raises:
        InputError: If the name cannot be one of an actor type and a module.
    """
    module = name.replace("-", "_")
    try:
        subjects.check_name(name, what="agent")
    except InvalidNameError as error:
        raise InputError(str(error)) from error
    if not module.isidentifier() or keyword.iskeyword(module):
        message = f"{name!r} cannot be the name of a Python file as well: begin with a letter, such as paint-estimator"
        raise InputError(message)
    cls = "".join(part.capitalize() for part in module.split("_") if part)
    agent, test = folder / f"{module}.py", folder / f"test_{module}.py"
    folder.mkdir(parents=True, exist_ok=True)
    words = {"name": name, "cls": cls, "module": module, "file": agent.name}
    kept = [path for path in (agent, test) if path.exists()]
    for path, text in ((agent, _AGENT), (test, _TEST)):
        if path not in kept:
            path.write_text(text.format(**words), encoding="utf-8")
    return Written(agent=agent, test=test, kept=tuple(kept))
