"""A host sweeps behind the turns of its own actors: superseded states and handled mail go, and nothing else."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import record
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

KEYS = ["ann", "bob", "eve"]
MAILS = 12
RULES = replace(QUICK.actor_rules, retention_s=0.5, audit_settle_s=0.0, trim_every_s=0.1, cursor_every_s=0.1)
SWEEPING = replace(QUICK, actor_rules=RULES)


class Add(Struct):
    n: int


class Adder(Actor, name="adder", retry=RetryPolicy(attempts=1), poison_limit=1):
    class State(Struct):
        total: int = 0

    state: State

    @on
    async def add(self, m: Add) -> int:
        if self.key == "stuck" and m.n == 2:
            raise ValueError(m.n)
        self.state.total += await self.step("read", _same, m.n, once=True)
        return self.state.total


def _same(n: int) -> int:
    return n


async def standing(world: World, *filters: str, stream: str = subjects.ACTORS) -> list[Stored]:
    return [stored async for stored in world.bus.read(stream, subjects=filters)]


async def handled(world: World) -> None:
    async def is_done() -> bool:
        found = await world.bus.get_many(subjects.ACTORS, [subjects.state("adder", key) for key in KEYS])
        return [record.decode(stored.data).turns for stored in found] == [MAILS] * len(KEYS)

    await eventually(is_done, within_s=15.0)


async def test_states_and_mail_go_behind_the_audit_and_what_waits_stays(callboard_world: World) -> None:
    for n in range(MAILS):
        for key in [*KEYS, "stuck"]:
            await callboard_world.client.actor(f"adder/{key}").tell(Add(n))
    await callboard_world.start(Adder, options=SWEEPING)
    await handled(callboard_world)

    async def is_swept() -> bool:
        states = await standing(callboard_world, "cb.state.*.*")
        mails = await standing(callboard_world, "cb.mbox.>")
        return len(states) == len(KEYS) + 1 and {s.subject.split(".")[4] for s in mails} == {"stuck"}

    await eventually(is_swept, within_s=15.0)
    # the third mail failed the actor: it is a dead letter, and those behind it wait
    assert len(await standing(callboard_world, "cb.mbox.>")) == MAILS - 3
    copies = Counter(
        stored.subject.split(".")[3]
        for stored in await standing(callboard_world, stream=subjects.AUDIT)
        if stored.subject.startswith("cb.state.adder.")
    )
    assert all(copies[key] == MAILS for key in KEYS), copies


async def test_records_without_a_lifetime_get_one_with_the_end_of_their_turn(callboard_world: World) -> None:
    await callboard_world.start(Adder)
    assert await callboard_world.client.actor("adder/ann").ask(Add(5)) == 5

    async def has_end() -> bool:
        found = await standing(callboard_world, "cb.step.>")
        return [header.TTL in (stored.headers or {}) for stored in found] == [True]

    await eventually(has_end)


async def test_a_partition_that_was_handed_on_is_swept_by_its_new_owner(callboard_world: World) -> None:
    for n in range(MAILS):
        for key in KEYS:
            await callboard_world.client.actor(f"adder/{key}").tell(Add(n))
    first = await callboard_world.start(Adder)
    await handled(callboard_world)
    await callboard_world.start(Adder, options=SWEEPING)
    await first.stop()
    for key in KEYS:
        await callboard_world.client.actor(f"adder/{key}").tell(Add(0))

    async def is_swept() -> bool:
        return len(await standing(callboard_world, "cb.state.*.*")) == len(KEYS)

    await eventually(is_swept, within_s=15.0)
