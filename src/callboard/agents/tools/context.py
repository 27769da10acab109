"""What a tool's function may know of the call it serves."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from callboard.agents.errors import PathDeniedError, SandboxMissingError
from callboard.agents.sandbox.base import Sandbox


class ToolContext(Struct, frozen=True, kw_only=True):
    """The call that a tool serves. A parameter of this type is filled in; models do not see it.

    Attributes:
        key: Idempotency key: the same in every run of this call, no other call has it. Give it to whatever the tool
            changes outside, so that a second run changes nothing.
        address: The actor that calls, ``type/key``.
        call_id: The provider's name of the call.
        folder: The one folder that the agent may use; None for none.
        sandbox: Where code of a model runs; None for none.
    """

    key: str
    address: str
    call_id: str = ""
    folder: Path | None = None
    sandbox: Sandbox | None = None

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
