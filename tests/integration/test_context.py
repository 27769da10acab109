"""Shared context: values with history, conditions, sums and watches, from outside and from inside of turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from callboard.agents.context import Change, Context, sweep
from callboard.agents.shared import COMPANIONS, SweepNow, shared
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import (
    AskFailedError,
    ConflictError,
    DecodeError,
    EncodeError,
    InputError,
    InvalidNameError,
    PayloadTooLargeError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import World


def context(world: World, scope: str = "global", by: str = "ann") -> Context:
    return Context(world.bus, scope=scope, by=by, clock=world.clock)


async def test_values_stand_until_they_are_replaced_or_deleted(callboard_world: World) -> None:
    ctx = context(callboard_world)
    assert await ctx.get("plan") is None
    assert await ctx.get("plan", "none yet") == "none yet"
    first = await ctx.set("plan", {"steps": [1, 2.5, None, "zoë"]})
    assert await ctx.get("plan") == {"steps": [1, 2.5, None, "zoë"]}
    second = await ctx.set("plan", None)
    assert second > first
    found = await ctx.entry("plan")
    assert found is not None
    assert (found.key, found.value, found.revision, found.by) == ("plan", None, second, "ann")
    assert await ctx.delete("plan")
    assert not await ctx.delete("plan")
    assert await ctx.entry("plan") is None
    assert await ctx.set("plan", 1, expected=0) > second


async def test_scopes_do_not_see_one_another(callboard_world: World) -> None:
    scopes = ["global", "run/1", "run/2", "run/1.a", "private/clerk/ann", "private/clerk/bob", "private/desk/ann"]
    for scope in scopes:
        await context(callboard_world, scope).set("who", scope)
    for scope in scopes:
        assert await context(callboard_world, scope).get("who") == scope
        assert list(await context(callboard_world, scope).ls()) == ["who"]
    assert await context(callboard_world, "run/1").clear() == 1
    assert await context(callboard_world, "run/1.a").get("who") == "run/1.a"


async def test_many_at_a_time_all_or_none(callboard_world: World) -> None:
    ctx = context(callboard_world)
    await ctx.update({"a": 1, "b.one": 2, "b.two": 3, "bc": 4})
    assert {key: found.value for key, found in (await ctx.ls()).items()} == {"a": 1, "b.one": 2, "b.two": 3, "bc": 4}
    assert list(await ctx.ls("b.")) == ["b.one", "b.two"]
    assert list(await ctx.ls("b")) == ["b.one", "b.two", "bc"]
    assert list(await ctx.ls("b.t")) == ["b.two"]
    with pytest.raises(EncodeError):
        await ctx.update({"a": 2, "c": object()})
    with pytest.raises(InputError, match="1 to 1000 values, this one has 0"):
        await ctx.update({})
    assert await ctx.get("a") == 1
    assert await ctx.clear("b.") == 2
    assert list(await ctx.ls()) == ["a", "bc"]
    assert await ctx.clear() == 2
    assert await ctx.clear() == 0


async def test_a_condition_holds_or_nothing_is_written(callboard_world: World) -> None:
    ctx = context(callboard_world)
    first = await ctx.set("k", 1, expected=0)
    with pytest.raises(ConflictError, match="k has a value"):
        await ctx.set("k", 2, expected=0)
    second = await ctx.set("k", 2, expected=first)
    with pytest.raises(ConflictError, match="global: k was changed") as caught:
        await ctx.set("k", 3, expected=first)
    assert caught.value.last_seq in (second, 0)
    with pytest.raises(ConflictError):
        await ctx.delete("k", expected=first)
    assert await ctx.get("k") == 2
    assert await ctx.delete("k", expected=second)


async def test_of_writers_with_one_condition_one_wins(callboard_world: World) -> None:
    ctx = context(callboard_world)
    outcomes = await asyncio.gather(*(ctx.set("k", n, expected=0) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(each, int) for each in outcomes) == 1
    assert all(isinstance(each, (int, ConflictError)) for each in outcomes)


async def test_fifty_increments_at_once_are_fifty(callboard_world: World) -> None:
    buses = [await callboard_world.connect(f"c{n}") for n in range(5)]
    sums = await asyncio.gather(*(Context(buses[n % 5], by=f"w{n}").increment("n") for n in range(50)))
    assert sorted(sums) == list(range(1, 51))
    ctx = context(callboard_world)
    assert await ctx.get("n") == 50
    assert await ctx.increment("n", -8) == 42
    assert len(await ctx.history("n")) == 51
    for bus in buses:
        await bus.close()
    await ctx.set("text", "x")
    with pytest.raises(InputError, match="text holds no whole number"):
        await ctx.increment("text")
    await ctx.set("yes", True)
    with pytest.raises(InputError):
        await ctx.increment("yes")


async def test_a_value_with_a_time_is_gone_then_and_swept(callboard_world: World) -> None:
    world = callboard_world
    ctx = context(world)
    await ctx.set("short", 1, ttl=0.3)
    await ctx.set("long", 2, ttl="1h")
    found = await ctx.entry("long")
    assert found is not None
    assert found.expires_at is not None
    assert await ctx.get("short") == 1

    async def gone() -> bool:
        return await ctx.get("short") is None

    await eventually(gone)
    # it stands in the bucket still, and nobody is shown it
    assert list(await ctx.ls()) == ["long"]
    assert await ctx.increment("count") == 1
    assert len(await ctx.history("short")) == 1
    assert await sweep(world.bus, clock=world.clock) == 1
    assert await sweep(world.bus, clock=world.clock) == 0
    assert [(each.by, each.is_deleted) for each in await ctx.history("short")] == [("ann", False), ("expired", True)]
    assert await ctx.set("short", 3, expected=0)
    await ctx.set("again", 1, ttl=0.01)
    await eventually(lambda: ctx_is_none(ctx, "again"))
    assert await ctx.set("again", 2, expected=0)


async def ctx_is_none(ctx: Context, key: str) -> bool:
    return await ctx.get(key) is None


async def test_somebody_sweeps(callboard_world: World) -> None:
    world = callboard_world
    await world.start(*COMPANIONS)
    for scope in ("global", "run/7", "private/clerk/ann"):
        await context(world, scope).set("k", 1, ttl=0.01)
    await eventually(lambda: ctx_is_none(context(world, "run/7"), "k"))
    assert await world.client.actor("context/main").ask(SweepNow()) == 3


async def test_history_tells_who_when_old_and_new(callboard_world: World) -> None:
    world = callboard_world
    await context(world, by="ann").set("k", 1)
    await context(world, by="bob").set("k", 2)
    await context(world, by="eve").delete("k")
    await context(world, by="ann").set("k", 3)
    found = await context(world).history("k")
    assert [(each.by, each.old, each.new, each.is_deleted, each.is_first) for each in found] == [
        ("ann", None, 1, False, True),
        ("bob", 1, 2, False, False),
        ("eve", 2, None, True, False),
        ("ann", None, 3, False, False),
    ]
    assert [each.at for each in found] == sorted(each.at for each in found)
    assert [each.revision for each in found] == sorted(each.revision for each in found)
    for n in range(70):
        await context(world).set("k", n)
    found = await context(world).history("k")
    assert len(found) == 64
    assert (found[0].new, found[0].is_first, found[-1].old, found[-1].new) == (6, True, 68, 69)


async def test_a_watch_begins_now_or_at_the_start(callboard_world: World) -> None:
    world = callboard_world
    ctx = context(world)
    await ctx.set("a.x", 1)
    await ctx.set("b", 1)
    seen: list[Change] = []
    all_seen: list[Change] = []

    async def follow(prefix: str, *, from_start: bool, into: list[Change]) -> None:
        async for change in ctx.watch(prefix, from_start=from_start):
            into.append(change)  # noqa: PERF401 - as they come

    tasks = [
        asyncio.create_task(follow("a.", from_start=False, into=seen)),
        asyncio.create_task(follow("", from_start=True, into=all_seen)),
    ]
    await eventually(lambda: len(all_seen) == 2)

    async def noticed() -> bool:
        await ctx.set("a.y", 0)
        return bool(seen)

    await eventually(noticed)
    seen.clear()
    await ctx.set("a.x", 2)
    await ctx.set("b", 2)
    await context(world, "run/1").set("a.x", 9)
    await context(world, by="bob").delete("a.x")
    await eventually(lambda: bool(seen) and seen[-1].is_deleted)
    mine = [each for each in seen if each.key == "a.x"]
    assert [(each.by, each.old, each.new) for each in mine] == [("ann", 1, 2), ("bob", 2, None)]
    assert [each.key for each in seen if each.key == "b"] == []
    await eventually(lambda: all_seen[-1].is_deleted)
    assert [each.new for each in all_seen if each.key == "b"] == [1, 2]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("key", ["", ".", "a..b", ".a", "a.", "x" * 257, "\ud800"])
async def test_keys_that_cannot_be(callboard_world: World, key: str) -> None:
    ctx = context(callboard_world)
    for call in (ctx.get(key), ctx.set(key, 1), ctx.delete(key), ctx.increment(key), ctx.history(key)):
        with pytest.raises(InvalidNameError):
            await call


@pytest.mark.parametrize("key", ["*", ">", "a b", "zoë", "a/b", "%41", "=41", "a.b~c", "'", "$KV"])
async def test_any_other_text_is_a_key(callboard_world: World, key: str) -> None:
    ctx = context(callboard_world)
    await ctx.set("other", 0)
    await ctx.set(key, 1)
    assert {name: found.value for name, found in (await ctx.ls()).items()} == {"other": 0, key: 1}
    assert [each.key for each in await ctx.history(key)] == [key]


@pytest.mark.parametrize(
    "scope", ["", "globals", "global/x", "run", "run/", "private", "private/x", "private/X Y/z", "*"]
)
async def test_scopes_that_cannot_be(callboard_world: World, scope: str) -> None:
    with pytest.raises(InvalidNameError):
        context(callboard_world, scope)


async def test_values_that_cannot_be(callboard_world: World) -> None:
    ctx = context(callboard_world)
    with pytest.raises(PayloadTooLargeError, match="share its name"):
        await ctx.set("k", "x" * (256 * 1024))
    with pytest.raises(EncodeError):
        await ctx.set("k", float("nan"))
    await callboard_world.bus.store(Write("$KV.CB_CONTEXT.global.odd", b"not json"))
    with pytest.raises(DecodeError, match="is no value of the shared context"):
        await ctx.get("odd")


# --- in a turn


class Read(Struct):
    key: str
    fails: int = 0


class Count(Struct):
    key: str
    fails: int = 0
    times: int = 1


class Peep(Struct):
    scope: str


runs: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    runs.clear()


class Clerk(Actor, name="clerk", retry=RetryPolicy(attempts=5, gaps_s=(0.01,)), restart_budget=100):
    @on
    async def read(self, m: Read) -> Any:  # noqa: ANN401 - whatever stands there
        found = await shared(self).get(m.key)
        if len(runs) < m.fails:
            runs.append(found)
            # somebody changes it between two runs of the turn
            await Context(self._running("bus").bus, by="other").set(m.key, "changed")
            message = "once more"
            raise ValueError(message)
        return found

    @on
    async def count(self, m: Count) -> list[int]:
        ctx = shared(self).run("7")
        sums = [await ctx.increment(m.key) for _ in range(m.times)]
        await ctx.set("last", sums[-1], expected=0)
        await ctx.update({"x": 1, "y": 2})
        await shared(self).private.set("mine", sums)
        if len(runs) < m.fails:
            runs.append(sums)
            message = "once more"
            raise ValueError(message)
        assert await ctx.ls() == {m.key: sums[-1], "last": sums[-1], "x": 1, "y": 2}
        assert await ctx.delete("x")
        assert not await ctx.delete("none")
        assert await ctx.clear("y") == 1
        return sums

    @on
    async def peep(self, m: Peep) -> Any:  # noqa: ANN401 - whatever stands there
        from callboard.agents.shared import SharedContext

        return await SharedContext(self, scope=m.scope).get("mine")


async def test_what_a_turn_has_read_it_reads_again(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clerk)
    await context(world).set("plan", "first")
    assert await world.client.actor("clerk/ann").ask(Read("plan", fails=3)) == "first"
    assert runs == ["first"] * 3
    assert await context(world).get("plan") == "changed"
    assert await world.client.actor("clerk/ann").ask(Read("plan")) == "changed"
    assert await world.client.actor("clerk/ann").ask(Read("missing")) is None


async def test_what_a_turn_has_written_it_writes_once(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clerk)
    assert await world.client.actor("clerk/ann").ask(Count("n", fails=3, times=3)) == [1, 2, 3]
    assert runs == [[1, 2, 3]] * 3
    assert await context(world, "run/7").get("n") == 3
    found = await context(world, "run/7").history("n")
    assert [(each.new, each.by) for each in found] == [(n, "clerk/ann") for n in (1, 2, 3)]


async def test_what_is_private_is_refused_to_other_agents(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clerk)
    ann, bob = world.client.actor("clerk/ann"), world.client.actor("clerk/bob")
    await ann.ask(Count("n"))
    assert await ann.ask(Peep("private/clerk/ann")) == [1]
    for scope in ("private/clerk/ann", "private/clerk/bobby"):
        with pytest.raises(AskFailedError, match="belongs to another agent: clerk/bob has private/clerk/bob") as caught:
            await bob.ask(Peep(scope))
        assert caught.value.cause_code == "permission_denied"
    assert await bob.ask(Peep("private/clerk/bob")) is None
