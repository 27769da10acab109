"""What the commit of a finished turn holds: its answer, the state, the timers, and what it sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import UNSET, Raw, UnsetType

from callboard.runtime.actor import payload, verdict
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Reply, StateRecord, Timer
from callboard.runtime.actor.turn import Turn
from callboard.runtime.blobs import BlobRef
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import CallboardError, EncodeError, StateTooLargeError


async def reply_of(activation: Staged, turn: Turn, value: object) -> Reply:
    """Return the answer that a handler's value is; nobody is answered for a tell, so its value may be anything.

    Raises:
        EncodeError: If it has no JSON form and somebody waits for it.
        BusError: If a large one cannot be stored.
    """
    mail = turn.mail
    if not mail.reply_to:
        return Reply(id=mail.id)
    return await replies.stowed(activation.services, replies.value_reply(mail.id, value), is_kept=mail.has_own_id)


async def changes(activation: Staged, turn: Turn, actor: Actor | None) -> dict[str, object]:
    """Return the fields of the record that a finished turn leaves.

    Raises:
        EncodeError: If the state has no JSON form or does not fit its class any more.
        StateTooLargeError: If it is over its limit.
        BusError: If a large one cannot be stored.
    """
    known = activation.known
    found: dict[str, object] = {
        "timers": timers(known, turn, turn.timers),
        "turns": known.turns + 1,
        "failures": 0,
    }
    if actor is None or not activation.kind.has_state:
        return found
    data = _dump(activation, actor)
    limit = activation.kind.options.state_limit_bytes or activation.services.rules.state_limit_bytes
    if len(data) > limit:
        text = f"the state of {turn.address} takes {len(data)} bytes, over its limit of {limit}: keep less in it"
        raise StateTooLargeError(text, size_bytes=len(data), limit_bytes=limit)
    blob: BlobRef | UnsetType = UNSET
    raw: Raw | UnsetType = Raw(data)
    if len(data) > activation.services.rules.claim_check_bytes:
        blob, raw = await activation.services.blobs.put(data), UNSET
    return found | {"state": raw, "blob": blob, "schema": activation.kind.version}


async def travelling(activation: Staged, writes: Iterable[Write]) -> list[Write]:
    """Return the writes as they are sent: large payloads in the object store.

    Raises:
        BusError: If one cannot be stored there.
    """
    services = activation.services
    limit = services.rules.claim_check_bytes
    return [await payload.stow_write(services.blobs, write, limit_bytes=limit) for write in writes]


def timers(known: StateRecord, turn: Turn, given: Mapping[str, Timer | None]) -> dict[str, Timer]:
    """Return the timers that stand after the turn: what it set, less what it took away and what fired."""
    found = dict(verdict.firing(turn.mail)(known))
    for name, timer in given.items():
        if timer is None:
            found.pop(name, None)
        else:
            found[name] = timer
    return found


def _dump(activation: Staged, actor: Actor) -> bytes:
    try:
        return activation.kind.dump_state(actor.state)
    except CallboardError:
        raise
    except Exception as error:
        # the class's own code, or no `state` any more
        message = f"the state of {activation.address} cannot be stored: {type(error).__name__}: {error}"
        raise EncodeError(message) from error
