"""What an actor was: at any moment, turn by turn, and what changed, from the audit, on both adapters."""

from __future__ import annotations

import random
from datetime import timedelta

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.actor import history, record, replay
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Write
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import HistoryError, NotFoundError
from tests.integration.test_actor_trim import copied, filled, swept
from tests.support.past import Past
from tests.support.world import World

ANN = Address("greeter", "ann")
BOB = Address("greeter", "bob")


async def test_the_state_at_any_moment_is_what_was_noted_then(callboard_world: World) -> None:
    past = Past(callboard_world.bus, SYSTEM_CLOCK)
    dice = random.Random(7)
    for _ in range(150):
        await past.send(dice.choice(["ann", "bob"]))
        if dice.random() < 0.7:
            await past.handle(dice.choice(["ann", "bob"]))
    await copied(callboard_world.bus)
    # the originals of most go; what comes after them is not swept yet
    await swept(callboard_world, past)
    for _ in range(20):
        await past.handle("ann")
    versions = past.versions["ann"]
    first, last = versions[0], versions[-1]
    for _ in range(50):
        seq = dice.randint(first.seq, last.seq + 3)
        noted = [version for version in versions if version.seq <= seq][-1]
        found = await history.version_at(callboard_world.bus, ANN, seq)
        assert (found.seq, found.digest) == (noted.seq, noted.digest)
        at = first.at + (last.at - first.at) * dice.random()
        noted = [version for version in versions if version.at <= at][-1]
        assert (await history.version_at(callboard_world.bus, ANN, at)).digest == noted.digest
    assert (await history.version_at(callboard_world.bus, ANN)).digest == last.digest


async def test_a_state_that_was_changed_is_told_from_what_was_noted(callboard_world: World) -> None:
    """Negative control of the comparison above."""
    past = await filled(callboard_world, mails=4, handled=4)
    wrong, right = past.versions["ann"][1:3]
    found = await history.version_at(callboard_world.bus, ANN, right.seq)
    assert found.digest == right.digest
    assert found.digest != wrong.digest


async def test_a_moment_without_a_state_says_what_is_kept(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=3, handled=3)
    first = past.versions["ann"][0]
    with pytest.raises(HistoryError, match=f"did not exist at sequence 1: its first state is sequence {first.seq}"):
        await history.version_at(callboard_world.bus, ANN, 1)
    with pytest.raises(HistoryError, match="did not exist"):
        await history.version_at(callboard_world.bus, ANN, first.at - timedelta(days=1))
    with pytest.raises(NotFoundError, match="nothing is kept of greeter/bob"):
        await history.version_at(callboard_world.bus, BOB, 5)
    # without the audit only the latest state is left once the others were swept
    await swept(callboard_world, past)
    await callboard_world.bus.delete_stream(subjects.AUDIT)
    with pytest.raises(HistoryError, match=r"kept no more: the oldest state kept is .* of turn 3"):
        await history.version_at(callboard_world.bus, ANN, first.seq)
    assert (await history.version_at(callboard_world.bus, ANN)).record.turns == 3


async def walked(world: World, address: Address, **options: int) -> list[replay.Turn]:
    return [turn async for turn in replay.turns(world.bus, address, **options)]


@pytest.mark.parametrize("is_swept", [False, True])
async def test_turns_are_walked_with_what_each_did(callboard_world: World, *, is_swept: bool) -> None:
    past = await filled(callboard_world, mails=3, handled=3)
    if is_swept:
        await swept(callboard_world, past)
    turns = await walked(callboard_world, ANN)
    versions = past.versions["ann"]
    assert [turn.version.digest for turn in turns] == [version.digest for version in versions]
    assert [turn.arrival and turn.arrival.seq for turn in turns] == [version.record.mail for version in versions]
    assert [len(turn.steps) for turn in turns] == [1, 1, 1]
    assert [turn.missing for turn in turns] == [0, 0, 0]
    assert [reply.id for turn in turns for reply in turn.replies] == [f"~{v.record.mail}" for v in versions]
    assert [(change.path, change.old, change.new) for change in turns[1].changes] == [
        ("state.last", msgspec.Raw(b"%d" % versions[0].record.mail), msgspec.Raw(b"%d" % versions[1].record.mail)),
        ("state.turns", msgspec.Raw(b"1"), msgspec.Raw(b"2")),
    ]
    later = await walked(callboard_world, ANN, after=versions[1].seq)
    assert [turn.version.seq for turn in later] == [versions[2].seq]
    assert later[0].arrival is not None
    with pytest.raises(NotFoundError):
        await walked(callboard_world, BOB)


async def test_turns_that_are_kept_no_more_are_counted(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=5, handled=5)
    await swept(callboard_world, past)
    await callboard_world.bus.delete_stream(subjects.AUDIT)
    (turn,) = await walked(callboard_world, ANN)
    assert (turn.missing, turn.arrival) == (4, None)


async def test_a_state_in_the_object_store_is_shown_and_its_loss_is_told(callboard_world: World) -> None:
    bus = callboard_world.bus
    blobs = BlobStore(bus)
    ref = await blobs.put(b'{"text":"large"}')
    old = StateRecord(turns=1, state=msgspec.Raw(b'{"text":"small"}'))
    await bus.store(Write(subjects.state("greeter", "ann"), record.encode(old)))
    await bus.store(Write(subjects.state("greeter", "ann"), record.encode(StateRecord(turns=2, blob=ref))))
    latest = await history.version_at(bus, ANN)
    assert await history.state_of(bus, latest) == msgspec.Raw(b'{"text":"large"}')
    first = await history.version_at(bus, ANN, latest.seq - 1)
    assert [change.path for change in await replay.compare(bus, first, latest)] == ["state.text"]
    await blobs.delete(ref.name)
    with pytest.raises(HistoryError, match="its object is gone"):
        await replay.compare(bus, first, latest)
    assert [bool(turn.problem) for turn in await walked(callboard_world, ANN)] == [False, True]


async def test_mail_of_one_turn_is_not_shown_at_another(callboard_world: World) -> None:
    past = Past(callboard_world.bus, SYSTEM_CLOCK)
    await past.send("ann", text="first")
    await past.send("ann", text="second")
    await past.handle("ann")
    await past.handle("ann")
    turns = await walked(callboard_world, ANN)
    assert [turn.arrival and msgspec.json.decode(turn.arrival.data)["text"] for turn in turns] == ["first", "second"]
