"""Mail under which one host after another dies: each death is noted in the turn's journal before it is run again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Write
from callboard.runtime.errors import DecodeError


class CrashNote(Struct, frozen=True, kw_only=True):
    """Value of the note.

    Attributes:
        steps: Steps that were recorded by then: a turn that gets on is no poison.
    """

    steps: int


_note = msgspec.json.Decoder(CrashNote)


def deaths(found: Sequence[Stored]) -> int:
    """Return how many hosts died under a turn since it last recorded a step, by all that its journal holds.

    Only deaths with no step done between them count, so that a long turn on a shaky machine is not taken for poison.
    """
    notes: list[CrashNote] = []
    for stored in found:
        if step.entry_of(stored.subject).startswith(f"{step.CRASHED}."):
            try:
                value = step.decode(stored.data).value
                notes.append(_note.decode(value if value is not UNSET else b""))
            except (DecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
    steps = _steps(found)
    return sum(1 for note in notes if note.steps == steps)


async def note(activation: Staged, mail: Mail, cause_seq: int, found: Sequence[Stored]) -> None:
    """Note that a host died under this mail. One write, after a death only."""
    value = Raw(msgspec.json.encode(CrashNote(steps=_steps(found))))
    _ = await activation.services.committer.commit(write(activation, mail, step.CRASHED, cause_seq, value))


def write(activation: Staged, mail: Mail, name: str, cause_seq: int, value: Raw) -> Write:
    """Return a note in a turn's journal, one for each ownership and cause."""
    services = activation.services
    address = activation.address
    record = StepRecord(
        name=name, kind="done", at=services.clock.now(), worker=services.worker, args_digest="0", value=value
    )
    subject = subjects.step(address.type, address.key, mail.seq, f"{name}.{activation.owner.epoch}.{cause_seq}")
    headers = header.build(expected_seq=0, ttl_s=services.rules.step_ttl_s)
    return Write(subject, step.encode(record), headers)


def _steps(found: Sequence[Stored]) -> int:
    return sum(1 for stored in found if not step.is_note(step.entry_of(stored.subject)))
