"""Failing turns: tried again in place, buried, and the actor given up when that does not help."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec import Struct

from callboard.runtime.actor import inspection, letter
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.notice import ActorFailed
from callboard.runtime.errors import (
    ActorStoppedError,
    AskFailedError,
    RetryableError,
    TerminalError,
    UnknownMessageError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, failed, handled, letters, record_of, state_of
from tests.support.eventually import eventually
from tests.support.world import World

QUICKLY = RetryPolicy(attempts=3, gaps_s=(0.02,))


class Do(Struct):
    what: str
    name: str = ""


tries: list[tuple[str, float]] = []
hooks: list[str] = []
is_broken = True


@pytest.fixture(autouse=True)
def fresh() -> None:
    global is_broken  # noqa: PLW0603 - one a test
    tries.clear()
    hooks.clear()
    is_broken = True


class Worker(Actor, retry=QUICKLY, restart_budget=100, poison_limit=3):
    class State(Struct):
        done: list[str] = []

    @on
    async def do(self, m: Do) -> str:
        tries.append((m.name or m.what, time.monotonic()))
        self.state.done.append(m.name)
        if is_broken:
            match m.what:
                case "fail":
                    raise ValueError(m.name)
                case "twice" if self.attempt < 3:
                    raise ValueError(m.name)
                case "later" if self.attempt == 1:
                    raise RetryableError(after_s=0.3)
                case "terminal":
                    raise TerminalError(m.name)
        return m.name

    def on_failure(self, error: BaseException) -> None:
        hooks.append(f"{type(error).__name__} {self.state.done[-1]}")


async def test_a_failing_turn_is_tried_again_before_later_mail(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Worker)
    worker = world.client.actor("worker/w")
    for name in ("a", "b", "c"):
        await worker.tell(Do("twice", name))
    await handled(world, "worker/w", 3)
    assert [name for name, _ in tries] == ["a", "a", "a", "b", "b", "b", "c", "c", "c"]
    # what a failed attempt had changed is gone
    assert await state_of(world, "worker/w") == {"done": ["a", "b", "c"]}
    assert hooks == []


async def test_a_handler_says_when_it_is_to_be_tried_again(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Worker)
    assert await world.client.actor("worker/w").ask(Do("later", "x")) == "x"
    assert tries[1][1] - tries[0][1] >= 0.29


async def test_what_fails_for_good_becomes_a_dead_letter_and_is_requeued_by_one_order(callboard_world: World) -> None:
    global is_broken  # noqa: PLW0603 - mended
    world = callboard_world
    await world.start(Worker)
    worker = world.client.actor("worker/w")
    for name in ("a", "b", "c", "d"):
        await worker.tell(Do("fail", name))
    found = await failed(world, "worker/w")
    assert "3 mails in a row became dead letters" in found.reason
    assert hooks == ["ValueError a", "ValueError b", "ValueError c"]
    assert [(each.attempts, each.failure.type) for each in await letters(world, "worker/w")] == [(3, "ValueError")] * 3
    assert [name for name, _ in await events_of(world, "worker/w")] == ["failed"]
    with pytest.raises(
        ActorStoppedError, match=r"failed: 3 mails in a row.* `callboard agents restart worker/w`; .* waits"
    ):
        await worker.ask(Do("ok", "e"))
    is_broken = False
    assert await inspection.order(world.bus, parse("worker/w"), "requeue") == {"ok": True, "requeued": 3}
    await handled(world, "worker/w", 4)
    assert await state_of(world, "worker/w") == {"done": ["d", "a", "b", "c"]}
    assert await letters(world, "worker/w") == []
    assert (await record_of(world, "worker/w")).status == "active"


async def test_one_dead_letter_may_be_requeued_alone(callboard_world: World) -> None:
    global is_broken  # noqa: PLW0603 - mended
    world = callboard_world
    await world.start(Worker)
    worker = world.client.actor("worker/w")
    first = await worker.tell(Do("fail", "a"))
    await worker.tell(Do("fail", "b"))

    async def two() -> bool:
        return len(await letters(world, "worker/w")) == 2

    await eventually(two)
    is_broken = False
    await inspection.order(world.bus, parse("worker/w"), "requeue", seq=first)
    await handled(world, "worker/w", 1)
    assert await state_of(world, "worker/w") == {"done": ["a"]}
    assert len(await letters(world, "worker/w")) == 1


async def test_dead_letters_are_listed_newest_first_for_one_actor_or_a_type(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Worker)
    for key in ("a/b", "a.b"):
        await world.client.actor(f"worker/{key}").tell(Do("terminal", key))
        await eventually(lambda key=key: _count(world, key, 1))
    with pytest.raises(UnknownMessageError):
        await world.client.actor("worker/a/b").ask({"x": 1}, type="Nothing")
    found = await letter.letters(world.bus, "worker")
    assert [(each.letter.address, each.letter.failure.code) for each in found] == [
        ("worker/a/b", "unknown_message"),
        ("worker/a.b", "terminal"),
        ("worker/a/b", "terminal"),
    ]
    assert [each.letter for each in await letter.letters(world.bus, "worker", "a.b")] == [found[1].letter]
    assert len(await letter.letters(world.bus, "worker", limit=2)) == 2
    assert len(await letter.letters(world.bus, "worker", cause="terminal")) == 2
    assert await letter.letters(world.bus, "worker", since=found[0].stored_at) == found[:1]
    assert await letter.letters(world.bus, "another") == []
    assert await letter.counts(world.bus) == {"worker": 3}


async def _count(world: World, key: str, count: int) -> bool:
    return len(await letter.letters(world.bus, "worker", key)) == count


async def test_what_its_senders_do_wrong_does_not_fail_an_actor(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Worker)
    worker = world.client.actor("worker/w")
    for _ in range(4):
        with pytest.raises(UnknownMessageError, match="it handles Do"):
            await worker.ask({"x": 1}, type="Nothing")
        await worker.tell(b"{not json", type="Do")
        with pytest.raises(AskFailedError, match="no such"):
            await worker.ask(Do("terminal", "no such"))
    assert await worker.ask(Do("ok", "fine")) == "fine"
    assert (await record_of(world, "worker/w")).status == "active"
    assert len(await letters(world, "worker/w")) == 12


async def test_too_many_restarts_fail_the_actor_and_its_mail_stays(callboard_world: World) -> None:
    global is_broken  # noqa: PLW0603 - mended
    world = callboard_world

    class Stubborn(Worker, retry=RetryPolicy(attempts=100, gaps_s=(0.02,)), restart_budget=3):
        pass

    await world.start(Stubborn)
    await world.client.actor("stubborn/s").tell(Do("fail", "a"))
    found = await failed(world, "stubborn/s")
    assert found.reason.startswith("3 restarts in 60 s did not help: handler: a")
    assert len(tries) == 4
    assert (found.applied, await letters(world, "stubborn/s")) == (0, [])
    ((name, facts),) = await events_of(world, "stubborn/s")
    assert (name, facts["address"], facts["code"]) == ("failed", "stubborn/s", "handler")
    is_broken = False
    await inspection.order(world.bus, parse("stubborn/s"), "restart")
    await handled(world, "stubborn/s", 1)
    assert await state_of(world, "stubborn/s") == {"done": ["a"]}


async def test_by_default_bad_mail_is_buried_before_the_budget_of_restarts_is_spent(callboard_world: World) -> None:
    world = callboard_world

    # the default policy but for its gaps, within one window
    class Usual(Actor, retry=RetryPolicy(gaps_s=(0.02,))):
        @on
        async def do(self, m: Do) -> str:
            if m.what == "fail":
                raise ValueError(m.name)
            return m.name

    await world.start(Usual)
    usual = world.client.actor("usual/u")
    for name in ("a", "b"):
        await usual.tell(Do("fail", name))
    assert await usual.ask(Do("ok", "c")) == "c"
    assert len(await letters(world, "usual/u")) == 2
    for name in ("d", "e"):
        await usual.tell(Do("fail", name))
    assert await usual.ask(Do("ok", "f")) == "f"
    other = world.client.actor("usual/v")
    for name in ("a", "b", "c"):
        await other.tell(Do("fail", name))
    assert "3 mails in a row became dead letters" in (await failed(world, "usual/v")).reason


async def test_a_supervisor_is_told_and_its_own_failure_goes_on_to_its_own(callboard_world: World) -> None:
    world = callboard_world
    told: list[ActorFailed] = []

    class Child(Worker, supervisor="parent/p", poison_limit=1):
        pass

    class Parent(Actor, supervisor="grand/g", poison_limit=1, retry=RetryPolicy(attempts=1)):
        @on
        async def failed(self, m: ActorFailed) -> None:
            told.append(m)
            raise ValueError(m.address)

    class Grand(Actor, supervisor="grand/g"):
        @on
        async def failed(self, m: ActorFailed) -> None:
            told.append(m)

    await world.start(Child, Parent, Grand)
    seq = await world.client.actor("child/c").tell(Do("fail", "x"))
    await eventually(lambda: len(told) == 2)
    assert told[0].address == "child/c"
    assert (told[0].code, told[0].seq) == ("handler", seq)
    assert "dead letters" in told[0].reason
    assert told[1].address == "parent/p"
    assert (await record_of(world, "child/c")).status == "failed"
    assert (await record_of(world, "parent/p")).status == "failed"


async def test_a_turn_over_its_time_is_a_failed_attempt(callboard_world: World) -> None:
    world = callboard_world
    cut: list[int] = []

    class Slow(Actor, retry=QUICKLY, restart_budget=100, turn_timeout_s=0.2):
        @on
        async def do(self, m: Do) -> str:
            if self.attempt < 3:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cut.append(self.attempt)
                    raise
            return m.name

    await world.start(Slow)
    assert await world.client.actor("slow/s").ask(Do("", "n")) == "n"
    assert cut == [1, 2]


async def test_a_failed_start_counts_as_a_failed_attempt(callboard_world: World) -> None:
    world = callboard_world
    starts: list[int] = []

    class Shy(Actor, retry=QUICKLY, restart_budget=100):
        async def on_start(self) -> None:
            starts.append(1)
            if len(starts) < 3:
                raise SystemExit(1)

        @on
        async def do(self, m: Do) -> str:
            return m.name

    await world.start(Shy)
    assert await world.client.actor("shy/s").ask(Do("", "n")) == "n"
    assert len(starts) == 3
