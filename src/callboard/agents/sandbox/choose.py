"""Choose a sandbox by its name; the one that is asked for, or an error, never another.

From weak to strong: ``subprocess`` (refuses), ``bubblewrap`` (hides), ``docker`` (hides; the kernel bounds all sums).
"""

from __future__ import annotations

from typing import Final, assert_never

from callboard.agents.errors import SandboxMissingError
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.sandbox.bubblewrap import BubblewrapSandbox
from callboard.agents.sandbox.docker import DockerSandbox
from callboard.agents.sandbox.subprocess import SubprocessSandbox
from callboard.agents.sandbox_settings import SandboxName, SandboxSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

LEVELS: Final[tuple[SandboxName, ...]] = ("subprocess", "bubblewrap", "docker")


def choose(name: str = "", settings: SandboxSettings | None = None, *, clock: Clock = SYSTEM_CLOCK) -> Sandbox:
    """Return the sandbox of a name. Nothing is started or looked for yet: ``check`` does that, as does the first run.

    Args:
        name: ``subprocess``, ``bubblewrap`` or ``docker``; "" for the settings' own.
        settings: The operator's; None for the defaults.
        clock: For how long runs took.

    Raises:
        SandboxMissingError: If there is no sandbox of this name.
    """
    settings = settings if settings is not None else SandboxSettings()
    match known(name or settings.name):
        case "subprocess":
            return SubprocessSandbox(settings, clock=clock)
        case "bubblewrap":
            return BubblewrapSandbox(settings, clock=clock)
        case "docker":
            return DockerSandbox(settings, clock=clock)
        case never:
            assert_never(never)


def known(name: str) -> SandboxName:
    """Return the name if it is one of a sandbox.

    Raises:
        SandboxMissingError: If it is none.
    """
    for level in LEVELS:
        if name == level:
            return level
    message = f"there is no sandbox {name!r}; choose one of {', '.join(LEVELS)} (from weak to strong)"
    raise SandboxMissingError(message)


def is_at_least(name: str, least: str) -> bool:
    """Tell whether a sandbox is as strong as another.

    Raises:
        SandboxMissingError: If either is none.
    """
    return LEVELS.index(known(name)) >= LEVELS.index(known(least))
