"""What tests of actors look at: records, dead letters, events, steps."""

from __future__ import annotations

from typing import Any

import msgspec

from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.letter import MailLetter, decode_letter
from callboard.runtime.actor.record import StateRecord, decode
from callboard.runtime.bus import header
from tests.support.eventually import eventually
from tests.support.world import World


async def record_of(world: World, address: str) -> StateRecord:
    """Return an actor's record, an empty one when it has none."""
    to = parse(address)
    stored = await world.bus.get_last(subjects.ACTORS, subjects.state(to.type, to.key), from_leader=True)
    return decode(stored.data) if stored is not None else StateRecord()


async def state_of(world: World, address: str) -> Any:  # noqa: ANN401 - whatever the actor keeps
    """Return an actor's state as plain values, None when it was never stored."""
    found = (await record_of(world, address)).state
    return msgspec.json.decode(found) if isinstance(found, msgspec.Raw) else None


async def letters(world: World, address: str) -> list[MailLetter]:
    """Return an actor's dead letters, oldest first."""
    to = parse(address)
    wildcard = f"cb.dead.mail.{to.type}.{to.token}.*"
    found = await world.bus.get_many(subjects.DEAD, [wildcard])
    return [decode_letter(stored.data) for stored in sorted(found, key=lambda each: each.seq)]


async def events_of(world: World, address: str) -> list[tuple[str, Any]]:
    """Return an actor's events, oldest first, as name and plain values."""
    to = parse(address)
    read = world.bus.read(subjects.ACTORS, subjects=(subjects.event(to.type, to.key),))
    return [((found.headers or {}).get(header.TYPE, ""), msgspec.json.decode(found.data)) async for found in read]


async def steps_of(world: World, address: str, seq: int | str = "*") -> list[str]:
    """Return the names of the steps that an actor has recorded."""
    to = parse(address)
    found = await world.bus.get_many(subjects.ACTORS, [f"cb.step.{to.type}.{to.token}.{seq}.>"])
    return [step.decode(stored.data).name for stored in found]


async def mails_of(world: World, address: str) -> int:
    """Return how many mails stand in an actor's mailbox, handled ones included."""
    to = parse(address)
    counts = await world.bus.subject_counts(subjects.ACTORS, f"cb.mbox.{to.type}.*.{to.token}")
    return sum(counts.values())


async def handled(world: World, address: str, turns: int, *, within_s: float = 10.0) -> StateRecord:
    """Wait until an actor has committed so many turns; return its record."""

    async def done() -> bool:
        return (await record_of(world, address)).turns >= turns

    await eventually(done, within_s=within_s, what=f"{turns} turns of {address}")
    return await record_of(world, address)


async def parked(world: World, address: str, count: int = 1) -> StateRecord:
    """Wait until an actor has so many parked turns; return its record."""

    async def done() -> bool:
        return len((await record_of(world, address)).parked) == count

    await eventually(done, within_s=10, what=f"{count} parked turns of {address}")
    return await record_of(world, address)


async def failed(world: World, address: str) -> StateRecord:
    """Wait until an actor has failed; return its record."""

    async def done() -> bool:
        return (await record_of(world, address)).status == "failed"

    await eventually(done, within_s=15, what=f"{address} fails")
    return await record_of(world, address)
