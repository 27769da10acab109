"""What a tool's function may know of the call it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from callboard.agents.errors import PathDeniedError, SandboxMissingError
from callboard.agents.sandbox.base import Sandbox
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.turn_api import TurnApi

T = TypeVar("T")


class ToolContext(Struct, frozen=True, kw_only=True):
    """The call that a tool serves. A parameter of this type is filled in; models do not see it.

    Attributes:
        key: Idempotency key: the same in every run of this call, no other call has it. Give it to whatever the tool
            changes outside, so that a second run changes nothing.
        address: The actor that calls, ``type/key``.
        call_id: The provider's name of the call.
        folder: The one folder that the agent may use; None for none.
        sandbox: Where code of a model runs; None for none.
        turn: The turn that calls; None in a worker pool.
    """

    key: str
    address: str
    call_id: str = ""
    folder: Path | None = None
    sandbox: Sandbox | None = None
    turn: TurnApi | Actor | None = None

    async def remember(self, name: str, fn: Callable[[], T]) -> T:
        """Return what ``fn`` returned in the first run of this call that came so far: a step inside the call's step.

        With it a tool that changes something decides once, and a second run can tell its own work from the state
        before. It runs in a thread. In a worker pool, which has no journal, every run calls it.

        Args:
            name: Name within the call.
            fn: Its annotation says what the value is read back as.
        """
        if self.turn is None:
            return await asyncio.to_thread(fn)
        found: T = await self.turn.step(name, fn)
        return found

    def need_folder(self) -> Path:
        """Return the folder.

        Raises:
            PathDeniedError: If the agent has none.
        """
        if self.folder is None:
            message = "this agent may use no folder: give it one, folder=..."
            raise PathDeniedError(message)
        return self.folder

    def need_sandbox(self) -> Sandbox:
        """Return the sandbox.

        Raises:
            SandboxMissingError: If the agent has none. Nothing runs outside of one instead.
        """
        if self.sandbox is None:
            message = "this agent has no sandbox, and code is run in nothing weaker: give it one, sandbox=..."
            raise SandboxMissingError(message)
        return self.sandbox
