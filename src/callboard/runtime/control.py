"""Orders to workers: bodies of the ``cb.ctl`` subjects and keys of live settings."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.errors import BusError, DecodeError

CONFIG_BUCKET = "CB_CONFIG"
PAUSE_PREFIX = "pause."


class Order(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.worker.<worker>``, to a worker or to the parent of a group of them.

    Attributes:
        op: ``drain``; ``stop``, which waits for nothing; ``slots`` to a worker; ``scale`` to a group.
        capability: Whose slots.
        slots: How many it has from now on.
        processes: How many processes a group of a fixed size has from now on.
        min: The fewest that a group that scales itself has from now on; None leaves it as it is.
        max: The most.
    """

    op: str
    capability: str = ""
    slots: int = 0
    processes: int | None = None
    min: int | None = None
    max: int | None = None


class CancelRequest(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.cancel``."""

    task: str
    reason: str = "cancelled by request"


class Accusation(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.dead`` from a worker that got no answer from another one: look for yourself."""

    worker: str
    by: str = ""


class ProcessEnd(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.dead`` from a parent that saw its child end."""

    host: str
    pid: int
    by: str = ""


async def answer(bus: Bus, message: Message, body: Mapping[str, object]) -> None:
    """Answer a request with JSON, if it wants an answer; one that cannot be sent is not missed by anybody here."""
    if message.reply:
        try:
            await bus.publish(message.reply, msgspec.json.encode(body))
        except BusError:
            return


decode_order = msgspec.json.Decoder(Order).decode
decode_cancel = msgspec.json.Decoder(CancelRequest).decode
_accusation = msgspec.json.Decoder(Accusation)
_process_end = msgspec.json.Decoder(ProcessEnd)


def decode_death(data: bytes) -> Accusation | ProcessEnd:
    """Return what a message on ``cb.ctl.dead`` says.

    Raises:
        DecodeError: If it is neither.
    """
    try:
        return _process_end.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # then it must be the other form
    try:
        return _accusation.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is no report of a death: {error}"
        raise DecodeError(message) from error
