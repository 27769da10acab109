"""What a host does with a turn that another one had begun and not finished: go on from its journal, or begin anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_args

from msgspec import Struct

from callboard.runtime import events, logs
from callboard.runtime.actor.address import Address
from callboard.runtime.errors import ConfigError

Cause = Literal["death", "drain", "move"]
Choice = Literal["resume", "restart", "bury"]

_log = logs.get_logger(__name__)


class Begun(Struct, frozen=True, kw_only=True):
    """A turn that another host had begun.

    Attributes:
        address: The actor.
        seq: Sequence of the mail that the turn handles.
        type: The mail's message type, None when it does not say.
        steps: Names of the recorded steps that would be replayed, in the order of their records.
        from_worker: The host that had it, "" when that cannot be told.
        cause: ``death`` of that host, its ``drain``, or a ``move`` of the partition.
        deaths: Hosts that died under this mail with no step recorded between, this one included; 0 for other causes.
    """

    address: Address
    seq: int
    type: str | None
    steps: tuple[str, ...]
    from_worker: str
    cause: Cause
    deaths: int = 0


Recovery = Literal["resume", "restart"] | Callable[[Begun], Choice]
"""``resume`` replays the recorded steps. ``restart`` runs them again, but for those with ``once=True``, whose records
hold. A function, plain and quick, decides for each turn; its ``bury`` makes the mail a dead letter."""


def checked(given: object, *, what: str) -> Recovery:
    """Return a class's recovery if it is one.

    Raises:
        ConfigError: If it is not.
    """
    if given in ("resume", "restart") or callable(given):
        return cast("Recovery", given)
    message = f"{what} is {given!r}, take 'resume', 'restart' or a function of a Begun that returns one of them"
    raise ConfigError(message)


def decide(recovery: Recovery, begun: Begun, *, crash_limit: int, was_restarted: bool) -> Choice:
    """Return what becomes of a turn.

    Over the crash limit the recorded steps may be what kills it: it is restarted once, then it becomes a dead letter.
    """
    if begun.deaths > crash_limit:
        may_help = bool(begun.steps) and not was_restarted and recovery != "restart"
        return "restart" if may_help else "bury"
    if not callable(recovery):
        return recovery
    try:
        choice = recovery(begun)
    except Exception as error:  # noqa: BLE001 - the user's code; the journal is the safe way
        _log.warning(events.HOOK_FAILED, actor=str(begun.address), hook="recovery", type=type(error).__name__)
        return "resume"
    if choice not in get_args(Choice):
        _log.warning(events.HOOK_FAILED, actor=str(begun.address), hook="recovery", type=repr(choice)[:80])
        return "resume"
    return choice
