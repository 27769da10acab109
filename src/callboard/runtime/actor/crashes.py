"""Mail under which one host after another dies: noted in the turn's journal before it is run again."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import BusError, CrashLimitError, DecodeError

NAME = "~crash"
_RETRY_S = 0.25


class CrashNote(Struct, frozen=True, kw_only=True):
    """Value of the note.

    Attributes:
        steps: Steps that were recorded by then: a turn that gets on is no poison.
    """

    steps: int


_note = msgspec.json.Decoder(CrashNote)


async def note(activation: Staged, mail: Mail, cause_seq: int) -> CrashLimitError | None:
    """Note that a host died under this mail; return the error that buries it once it has killed too many.

    Only deaths with no step done between them count, so that a long turn on a shaky machine is not taken for poison.
    One read and one write, after a death only.

    Raises:
        BusError: If the journal can never be read: no permission, connection closed.
    """
    services = activation.services
    address = activation.address
    limit = services.rules.crash_limit
    steps, notes = await _read(activation, mail)
    deaths = sum(1 for found in notes if found.steps == steps) + 1
    if deaths > limit:
        return CrashLimitError(f"its host died {deaths} times under this mail, with no step done between")
    record = StepRecord(
        name=NAME,
        kind="done",
        at=services.clock.now(),
        worker=services.worker,
        args_digest="0",
        value=Raw(msgspec.json.encode(CrashNote(steps=steps))),
    )
    subject = subjects.step(address.type, address.key, mail.seq, f"{NAME}.{activation.owner.epoch}.{cause_seq}")
    headers = header.build(expected_seq=0, ttl_s=services.rules.step_ttl_s)
    _ = await services.committer.commit(Write(subject, step.encode(record), headers))
    return None


async def _read(activation: Staged, mail: Mail) -> tuple[int, list[CrashNote]]:
    """Return how many steps the mail's turn has recorded, and the notes."""
    wildcard = subjects.steps(activation.address.type, activation.address.key, mail.seq)
    while True:
        try:
            found = await activation.services.bus.get_many(subjects.ACTORS, [wildcard], from_leader=True)
            break
        except BusError as error:
            if not error.retryable:
                raise
            await activation.services.clock.sleep(_RETRY_S)
    notes: list[CrashNote] = []
    steps = 0
    for stored in found:
        if step.entry_of(stored.subject).startswith(f"{NAME}."):
            try:
                value = step.decode(stored.data).value
                notes.append(_note.decode(value if value is not UNSET else b""))
            except (DecodeError, msgspec.DecodeError):
                continue
        else:
            steps += 1
    return steps, notes
