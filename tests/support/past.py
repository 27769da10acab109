"""Actors written by hand: mail and states as an engine would store them, and what was noted while doing so."""

from __future__ import annotations

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import record
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.history import Version
from callboard.runtime.actor.mail import mail_headers, mail_write
from callboard.runtime.actor.record import Reply, StateRecord
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.clock import Clock


class Past:
    """Plays the engine for any number of actors of one type and partition.

    Attributes:
        versions: Every state committed, by key, as noted when it was.
        pending: Sequences of mail that is not handled, by key.
        dirty: Keys committed since this was last emptied, with the sequence of the latest state.
        upto: Sequence of the last mail sent.
    """

    def __init__(self, bus: Bus, clock: Clock, *, kind: str = "greeter") -> None:
        self.bus = bus
        self.clock = clock
        self.kind = kind
        self.versions: dict[str, list[Version]] = {}
        self.pending: dict[str, list[int]] = {}
        self.dirty: dict[str, int] = {}
        self.upto = 0

    def address(self, key: str) -> Address:
        return Address(self.kind, key)

    async def send(self, key: str, *, text: str = "hi") -> int:
        """Put a mail into an actor's mailbox."""
        data = msgspec.json.encode({"text": text})
        ack = await self.bus.store(mail_write(self.address(key), data, mail_headers(type="Ask")))
        self.pending.setdefault(key, []).append(ack.seq)
        self.upto = ack.seq
        return ack.seq

    async def handle(self, key: str) -> bool:
        """Handle the oldest mail of an actor, with one step; False when there is none."""
        waiting = self.pending.get(key)
        if not waiting:
            return False
        mail = waiting.pop(0)
        if not waiting:
            del self.pending[key]
        step = subjects.step(self.kind, key, mail, "greet.00.1")
        await self.bus.store(Write(step, b'{"name":"greet","value":1}', header.build(expected_seq=0, ttl_s=3600)))
        known = self.versions.get(key, [])
        now = self.clock.now()
        before = known[-1].record if known else StateRecord()
        turns = before.turns + 1
        after = replace(
            before,
            applied=mail,
            mail=mail,
            turns=turns,
            by="w-1",
            epoch=1,
            state=Raw(msgspec.json.encode({"turns": turns, "last": mail})),
            replies=[Reply(id=f"~{mail}", value=Raw(b"%d" % turns))],
            at=now,
        )
        data = record.encode(after)
        expected = known[-1].seq if known else 0
        ack = await self.bus.store(Write(subjects.state(self.kind, key), data, header.build(expected_seq=expected)))
        self.versions.setdefault(key, []).append(Version(seq=ack.seq, at=now, data=data, record=after))
        self.dirty[key] = ack.seq
        return True

    def cursor(self) -> Cursor:
        """Return the cursor that says all this."""
        return Cursor(
            epoch=1, owner="w-1", upto=self.upto, pending={key: seqs[0] for key, seqs in self.pending.items()}
        )

    def taken(self) -> dict[str, int]:
        """Return what is dirty, once."""
        dirty, self.dirty = self.dirty, {}
        return dirty
