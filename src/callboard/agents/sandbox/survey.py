"""Which sandboxes work on this machine? For the doctor; each is tried by running ``true`` in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from callboard.agents.errors import SandboxError
from callboard.agents.sandbox.choose import LEVELS, choose
from callboard.agents.sandbox_settings import SandboxSettings
from callboard.runtime.finding import Finding


async def examine(settings: SandboxSettings) -> AsyncIterator[Finding]:
    """Yield a finding for each sandbox, from weak to strong. Takes up to a second.

    One that does not work is a warning only where the settings name it.
    """
    for name in LEVELS:
        sandbox = choose(name, settings)
        check = f"sandbox_{name}"
        try:
            await sandbox.check()
        except SandboxError as error:
            is_wanted = name == settings.name
            fix = "or choose another by agents.sandbox.name" if is_wanted else ""
            yield Finding(check=check, level="warning" if is_wanted else "note", text=str(error), fix=fix)
        else:
            yield Finding(
                check=check, level="ok", text="works" + (", and is the default" if name == settings.name else "")
            )
        finally:
            await sandbox.close()
