"""Does a sandbox work on this machine? Asked by running ``true`` in it once, because nothing else tells."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from callboard.agents.errors import SandboxError, SandboxMissingError
from callboard.agents.sandbox.base import Job, Limits, Ran

_TIME_S = 30.0


async def prove(
    name: str,
    run: Callable[[Job], Awaitable[Ran]],
    *,
    folders: Sequence[Path] = (),
    mode: int = 0o700,
    advice: str = "",
) -> None:
    """Run ``true``.

    Args:
        name: Of the sandbox, for the message.
        run: Runs a job in it.
        folders: Where the operator allows folders; the first takes the folder of the run. None: the temporary folder.
        mode: Who may write that folder.
        advice: What to do should it fail.

    Raises:
        SandboxMissingError: If it cannot be run, or ends with anything but 0.
    """
    with tempfile.TemporaryDirectory(prefix="callboard-", dir=next(iter(folders), None)) as made:
        await asyncio.to_thread(Path(made).chmod, mode)
        try:
            ran = await run(Job(argv=["true"], folder=Path(made), limits=Limits(time_s=_TIME_S), label="check"))
        except SandboxMissingError:
            raise
        except SandboxError as error:
            message = f"the sandbox {name} does not work here: {error}{advice and f'; {advice}'}"
            raise SandboxMissingError(message) from error
    if ran.status != 0:
        said = ran.stderr.decode(errors="replace").strip()[-500:] or ran.limit or "nothing"
        message = f"the sandbox {name} does not work here: `true` ended with {ran.status} and said: {said}"
        message += advice and f"; {advice}"
        raise SandboxMissingError(message)
