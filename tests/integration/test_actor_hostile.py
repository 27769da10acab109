"""What no handler and no sender should do: the actor and its neighbours go on, and somebody learns why."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import inspection, record
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.mail import KINDS
from callboard.runtime.actor.migration import migrate
from callboard.runtime.actor.record import IDS_KEPT, StateRecord
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import (
    AskFailedError,
    CallboardError,
    DecodeError,
    InvalidNameError,
    ReplyGoneError,
    StateDecodeError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import handled, letters, mails_of, record_of, state_of
from tests.support.eventually import eventually
from tests.support.world import World

ONCE = RetryPolicy(attempts=1)


class Do(Struct):
    what: str


class Big(Struct):
    text: str


class Panic(BaseException):
    """No Exception."""


class Odd(Actor, retry=ONCE, poison_limit=1000):
    class State(Struct):
        done: int = 0
        text: str = ""

    @on
    async def do(self, m: Do) -> Any:  # noqa: ANN401 - strange values are the subject
        match m.what:
            case "unencodable":
                return object()
            case "nan":
                return float("nan")
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "base":
                raise Panic
            case "stop":
                raise StopIteration
            case "cancelled":
                raise asyncio.CancelledError
            case "bad state":
                self.state.done = "no number"
            case "no state":
                del self.state
            case "big state":
                self.state.text = "x" * 2_000_000
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(_fail())
        self.state.done += 1
        return self.state.done

    @on
    def big(self, m: Big) -> Any:  # noqa: ANN401 - as above
        match m.text:
            case "exit":
                sys.exit(3)
            case "stop":
                raise StopIteration
            case "generator exit":
                raise GeneratorExit
            case "fork":
                pid = os.fork()
                if pid:
                    os.waitpid(pid, 0)
                return "parent"
        self.tell("odd/other", Big(m.text))
        self.state.text = m.text[:10]
        return m.text


async def _fail() -> None:
    text = "in a group"
    raise ValueError(text)


BAD = [
    "unencodable",
    "nan",
    "exit",
    "interrupt",
    "base",
    "stop",
    "cancelled",
    "bad state",
    "no state",
    "big state",
    "group",
]


async def test_a_handler_may_do_its_worst_and_the_next_mail_is_handled(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/o")
    for number, what in enumerate(BAD):
        with pytest.raises(CallboardError):
            await odd.ask(Do(what), timeout_s=20)
        assert await odd.ask(Do("fine"), timeout_s=20) == number + 1
    assert len(await letters(world, "odd/o")) == len(BAD)
    assert (await state_of(world, "odd/o"))["done"] == len(BAD)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_synchronous_handler_may_too(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/o")
    for text in ("exit", "stop", "generator exit"):
        with pytest.raises(AskFailedError):
            await odd.ask(Big(text), timeout_s=20)
    assert await odd.ask(Big("fork"), timeout_s=20) == "parent"
    assert await odd.ask(Big("fine"), timeout_s=20) == "fine"


async def test_messages_of_any_size_travel(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/o")
    text = "y" * 3_000_000
    assert await odd.ask(Big(text), timeout_s=30) == text
    assert await odd.ask(Big(text), timeout_s=30, idempotency_key="k") == text
    assert await odd.ask(Big(text), timeout_s=30, idempotency_key="k") == text
    await handled(world, "odd/other", 2, within_s=20)
    await odd.tell(Big(text))
    await handled(world, "odd/other", 3, within_s=20)
    assert await state_of(world, "odd/other") == {"done": 0, "text": "y" * 10}


async def test_large_mail_that_fails_becomes_a_dead_letter_and_is_requeued_whole(callboard_world: World) -> None:
    world = callboard_world
    broken = True
    sizes: list[int] = []

    class Picky(Actor, retry=ONCE):
        @on
        async def big(self, m: Big) -> None:
            if broken:
                raise ValueError(m.text[:3])
            sizes.append(len(m.text))

    await world.start(Picky)
    await world.client.actor("picky/p").tell(Big("x" * 2_000_000))
    # a plain publisher, under the server's limit and over ours
    body = b'{"text": "' + b"y" * 900_000 + b'"}'
    await world.bus.store(Write(subjects.mail("picky", "p"), body, {header.TYPE: "Big"}))

    async def buried() -> bool:
        return len(await letters(world, "picky/p")) == 2

    await eventually(buried, within_s=15)
    broken = False
    await inspection.order(world.bus, parse("picky/p"), "requeue")
    await eventually(lambda: sizes == [2_000_000, 900_000], within_s=15)


async def test_a_claim_check_for_nothing_is_a_dead_letter(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/o")
    for claim in (f"{'0' * 64} {'0' * 64} 5", "nonsense"):
        await odd.tell(b"", type="Do", headers={header.CLAIM_CHECK: claim})
    with pytest.raises(CallboardError):
        await odd.ask(b"", headers={header.CLAIM_CHECK: "nonsense"})
    assert await odd.ask(Do("fine")) == 1
    assert [letter.failure.code for letter in await letters(world, "odd/o")] == ["decode", "decode"]


@pytest.mark.parametrize("subject", ["cb.state.odd.victim", "cb.mail.odd.victim", "$KV.CB_CONFIG.x", "a b", "a.>"])
async def test_nobody_writes_what_only_workers_write_through_an_answer(callboard_world: World, subject: str) -> None:
    world = callboard_world
    await world.start(Odd)
    victim = world.client.actor("odd/victim")
    assert await victim.ask(Do("fine")) == 1
    headers = {header.TYPE: "Do", header.REPLY_TO: subject}
    for what in ("fine", "base"):
        await world.bus.store(Write(subjects.mail("odd", "forger"), b'{"what":"%s"}' % what.encode(), headers))
    # an ask's reply subject is its sender's word too
    await world.bus.publish(subjects.ask("odd", "forger"), b'{"what":"fine"}', headers=headers)
    await world.bus.publish(subjects.ask("odd", "forger"), b"{}", headers=headers | {header.TYPE: "Nope"})
    await handled(world, "odd/forger", 2)

    async def buried() -> bool:
        return len(await letters(world, "odd/forger")) == 2

    await eventually(buried)
    assert await victim.ask(Do("fine")) == 2
    assert (await record_of(world, "odd/victim")).turns == 2


async def test_a_late_copy_of_a_question_has_no_second_effect_behind_many_others(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/busy")
    assert await odd.ask(Do("fine"), idempotency_key="first") == 1
    for number in range(IDS_KEPT + 1):
        await odd.ask(Do("fine"), idempotency_key=f"k{number}")
    # as a host does that stood still with the question in its hands
    headers = {header.TYPE: "Do", header.MAIL_ID: "first", header.REPLY_TO: "nobody.there"}
    await world.bus.store(Write(subjects.mail("odd", "busy"), b'{"what":"fine"}', headers))
    with pytest.raises(ReplyGoneError):
        await odd.ask(Do("fine"), idempotency_key="first")
    assert await odd.ask(Do("fine")) == IDS_KEPT + 3


@pytest.mark.parametrize("sign", sorted(KINDS))
async def test_a_question_that_poses_as_our_own_mail_is_answered_with_an_error(
    callboard_world: World, sign: str
) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/posed")
    headers = {header.MAIL_KIND: sign, header.TIMER: "every.x", header.TIMER_GENERATION: "1"}
    with pytest.raises(DecodeError, match=header.MAIL_KIND):
        await odd.ask(Do("fine"), headers=headers, timeout_s=5)
    assert [letter.failure.code for letter in await letters(world, "odd/posed")] == ["decode"]


async def _mails_are(world: World, address: str, count: int) -> bool:
    return await mails_of(world, address) == count


@pytest.mark.parametrize("sign", sorted(KINDS))
async def test_a_tell_that_poses_as_our_own_mail_is_a_dead_letter(callboard_world: World, sign: str) -> None:
    world = callboard_world
    await world.start(Odd)
    odd = world.client.actor("odd/posed")
    forged = {header.MAIL_KIND: sign, header.TIMER: "every.x", header.TIMER_GENERATION: "1"}
    for headers in (forged, {header.MAIL_KIND: sign}):
        await world.bus.store(Write(subjects.mail("odd", "posed"), b'{"what":"fine"}', headers))
    # delayed mail that poses: its schedule is no timer of the actor's
    delayed = forged | header.at(datetime.now(UTC), subjects.mail("odd", "posed"))
    await world.bus.store(Write("cb.timer.client.posing.tell", b'{"what":"fine"}', delayed))
    await eventually(lambda: _mails_are(world, "odd/posed", 3))
    # what is no word of ours says nothing
    await world.bus.store(Write(subjects.mail("odd", "posed"), b'{"what":"fine"}', {header.MAIL_KIND: "own"}))
    assert await odd.ask(Do("fine")) == 2
    found = await letters(world, "odd/posed")
    assert [letter.failure.code for letter in found] == ["decode"] * 3
    assert all("leave the header out" in letter.failure.message for letter in found)
    assert [letter.data for letter in found] == [b'{"what":"fine"}'] * 3


@pytest.mark.parametrize(
    "key", ["a b", "*", ">", "x.y.z", "ünï/cødé", "line\nbreak", "tab\t", "%41", " lead", "k" * 256, "{}[]|\\^`\"'"]
)
async def test_any_text_may_be_a_key(callboard_world: World, key: str) -> None:
    world = callboard_world

    class AnyKey(Actor, name="anykey"):
        @on
        async def do(self, m: Do) -> str:
            if m.what == "self":
                self.tell(self.address, Do("told"))
                return str(await self.step("s", str, 1)) + str(await self.ask(self.address, Do("key")))
            self.emit("seen", m.what)
            return self.key

    await world.start(AnyKey)
    actor = world.client.actor(f"anykey/{key}")
    assert await actor.ask(Do("x"), timeout_s=10) == key
    assert await actor.ask(Do("self"), timeout_s=10) == "1" + key
    await handled(world, f"anykey/{key}", 3)


async def test_keys_that_are_none_are_refused_and_buried(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Odd)
    for key in ("", "k" * 257, "\ud800"):
        with pytest.raises(InvalidNameError):
            await ActorRef(world.bus, f"odd/{key}").tell(Do("fine"))
    tokens = ["%41", "%2e", "a%FF", "k" * 300]
    for token in tokens:
        await world.bus.store(Write(f"cb.mail.odd.{token}", b'{"what": "fine"}', {header.TYPE: "Do"}))
        answer = await world.bus.request(f"cb.ask.odd.{token}", b'{"what": "fine"}', headers={header.TYPE: "Do"})
        assert (answer.headers or {})[header.ERROR] == "invalid_name"

    async def buried() -> bool:
        return len(await world.bus.subject_counts(subjects.DEAD, "cb.dead.mail.odd.>")) == len(tokens)

    await eventually(buried)
    assert await world.client.actor("odd/A").ask(Do("fine")) == 1


async def _put(world: World, address: str, data: bytes) -> None:
    to = parse(address)
    await world.bus.store(Write(subjects.state(to.type, to.key), data))


async def test_a_record_that_cannot_be_read_stops_its_actor_only(callboard_world: World) -> None:
    world = callboard_world
    for key, data in (("junk", b"{nonsense"), ("later", b'{"applied": 0, "v": 2}')):
        await _put(world, f"odd/{key}", data)
    first = await world.start(Odd)
    for key, text in (("junk", "not a state record"), ("later", "newer Callboard")):
        with pytest.raises(StateDecodeError, match=text):
            await world.client.actor(f"odd/{key}").ask(Do("fine"), timeout_s=30)
        shown = await inspection.order(world.bus, parse(f"odd/{key}"), "show")
        assert shown["status"] == "failed"
        assert text in str(shown["problem"])
    assert await world.client.actor("odd/neighbour").ask(Do("fine")) == 1
    await world.client.actor("odd/junk").tell(Do("fine"))
    await first.stop()
    await _put(world, "odd/junk", record.encode(StateRecord()))
    await world.start(Odd)
    await handled(world, "odd/junk", 1)


class Tally1(Actor, name="tally"):
    class State(Struct):
        count: int = 0

    @on
    async def do(self, m: Do) -> int:
        self.state.count += 1
        return int(self.state.count)


class Tally2(Actor, name="tally"):
    class State(Struct):
        count: str = ""

    @on
    async def do(self, m: Do) -> str:
        return str(self.state.count)


class Tally3(Actor, name="tally", version=2):
    class State(Struct):
        count: int = 0

    is_broken = True

    @migrate(1)
    @staticmethod
    def one(state: dict[str, Any]) -> dict[str, Any]:
        if Tally3.is_broken:
            text = "no migration today"
            raise RuntimeError(text)
        return {"count": state["count"] * 10}

    @on
    async def do(self, m: Do) -> int:
        self.state.count += 1
        return int(self.state.count)


async def test_a_state_that_does_not_fit_waits_untouched_for_code_that_does(callboard_world: World) -> None:
    world = callboard_world
    Tally3.is_broken = True
    tally = world.client.actor("tally/t")
    running = await world.start(Tally1)
    assert await tally.ask(Do("x")) == 1
    await running.stop()
    for code, text in ((Tally2, "does not fit"), (Tally3, "no migration today")):
        running = await world.start(code)
        await tally.tell(Do("kept"))
        with pytest.raises(CallboardError, match=text):
            await tally.ask(Do("asked"), timeout_s=30)
        shown = await inspection.order(world.bus, parse("tally/t"), "show")
        assert shown["status"] == "failed"
        assert await state_of(world, "tally/t") == {"count": 1}
        assert (await record_of(world, "tally/t")).schema == 1
        await running.stop()
    Tally3.is_broken = False
    running = await world.start(Tally3)
    await handled(world, "tally/t", 3)
    assert await state_of(world, "tally/t") == {"count": 12}
    await running.stop()
    await world.start(Tally1)
    with pytest.raises(StateDecodeError, match="upgrade this host"):
        await tally.ask(Do("x"), timeout_s=30)
    assert await letters(world, "tally/t") == []
