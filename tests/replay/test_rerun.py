"""Turns that run again on their records: equal on the code that made them, and where they part on any other."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec import Struct

from callboard import on
from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.rerun import Rerun, rerun
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import (
    AskFailedError,
    BusError,
    HistoryError,
    NotFoundError,
    RetryableError,
    TerminalError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import handled, record_of
from tests.support.eventually import eventually
from tests.support.world import World


class Work(Struct):
    steps: int = 20


class State(Struct):
    done: int = 0
    last: str = ""


class Calls:
    """What the steps did outside."""

    made: ClassVar[list[int]] = []


def effect(number: int) -> str:
    Calls.made.append(number)
    return f"effect {number}"


class Digger(Actor, name="digger"):
    State = State

    @on
    async def dig(self, m: Work) -> list[str]:
        found = [await self.step("dig", effect, number) for number in range(m.steps)]
        self.state.done += len(found)
        self.state.last = found[-1]
        self.tell("heap/a", Work(len(found)))
        self.emit("dug", {"count": len(found)})
        return found


class Heap(Actor, name="heap"):
    @on
    async def take(self, m: Work) -> None:
        """Take it."""


async def dug(world: World, *, steps: int = 20, actor: type[Actor] = Digger) -> None:
    """Let it dig twice, and end the worker: what is written from then on was written by running again."""
    running = await world.start(actor, Heap)
    await world.client.actor("digger/a").ask(Work(1), idempotency_key="1")
    await world.client.actor("digger/a").ask(Work(steps), idempotency_key="2")
    await handled(world, "heap/a", 2)
    await running.stop()
    Calls.made.clear()


async def again(world: World, actor: type[Actor], **options: Any) -> Rerun:  # noqa: ANN401 - as rerun takes them
    return await rerun(world.bus, actor, parse("digger/a"), **options)


async def contents(world: World) -> dict[str, int]:
    found = {}
    for name in await world.bus.stream_names():
        info = await world.bus.stream_info(name)
        assert info is not None
        found[name] = info.last_seq
    return found


async def test_twenty_steps_run_again_equal_and_nothing_is_called(callboard_world: World) -> None:
    await dug(callboard_world)
    before = await contents(callboard_world)
    found = await again(callboard_world, Digger)
    assert (found.is_equal, found.steps, found.tried) == (True, 20, []), found
    assert Calls.made == []
    assert await contents(callboard_world) == before


async def test_an_earlier_turn_runs_on_the_state_of_its_moment(callboard_world: World) -> None:
    await dug(callboard_world)
    first = await callboard_world.bus.get_next(subjects.ACTORS, 1, "cb.mbox.digger.*.a")
    assert first is not None
    found = await again(callboard_world, Digger, seq=first.seq)
    assert (found.turn, found.is_equal, found.steps) == (f"digger/a/{first.seq}", True, 1), found


async def test_a_question_that_was_repeated_is_no_turn(callboard_world: World) -> None:
    """Who heard no answer in time asks again under the same id: the stored answer goes out, and nothing runs."""
    running = await callboard_world.start(Digger, Heap)
    ask = callboard_world.client.actor("digger/a").ask
    said = await ask(Work(3), idempotency_key="1")
    turn = (await record_of(callboard_world, "digger/a")).mail
    assert await ask(Work(3), idempotency_key="1") == said
    await running.stop()
    repeat = (await record_of(callboard_world, "digger/a")).mail
    assert repeat > turn
    Calls.made.clear()
    found = await again(callboard_world, Digger)
    assert (found.turn, found.is_equal, found.steps) == (f"digger/a/{turn}", True, 3), found
    with pytest.raises(HistoryError, match=f"mail {repeat} of digger/a repeats a question: no turn of its own"):
        await again(callboard_world, Digger, seq=repeat)


async def test_a_step_that_asks_for_something_else_is_the_first_difference(callboard_world: World) -> None:
    class Deeper(Actor, name="digger"):
        State = State

        @on
        async def dig(self, m: Work) -> list[str]:
            return [await self.step("dig", effect, 70 if number == 7 else number) for number in range(m.steps)]

    await dug(callboard_world)
    found = await again(callboard_world, Deeper)
    assert [each.kind for each in found.differences] == ["step"], found
    assert found.first is not None
    assert (found.first.name, found.first.now) == ("dig", [[70], {}])
    assert found.first.was.startswith("dig.")
    assert (found.steps, Calls.made) == (7, [])


async def test_a_step_that_is_new_has_nothing_in_its_place(callboard_world: World) -> None:
    class Sharper(Actor, name="digger"):
        State = State

        @on
        async def dig(self, m: Work) -> list[str]:
            _ = await self.step("sharpen", effect, 0)
            return [await self.step("dig", effect, number) for number in range(m.steps)]

    await dug(callboard_world)
    found = await again(callboard_world, Sharper)
    assert [(each.kind, each.name, each.was) for each in found.differences] == [("step", "sharpen", "")], found
    assert Calls.made == []


async def test_a_step_that_is_gone_is_named(callboard_world: World) -> None:
    class Lazier(Digger, name="digger"):
        @on
        async def dig(self, m: Work) -> list[str]:
            return [await self.step("dig", effect, number) for number in range(m.steps) if number != 4]

    await dug(callboard_world)
    found = await again(callboard_world, Lazier)
    assert found.first is not None
    assert (found.first.kind, found.first.name) == ("gone", "dig")
    assert [each.kind for each in found.differences] == ["gone", "sent", "sent", "reply", "state"], found
    state = found.differences[-1].changes
    assert [(each.path, bytes(each.old), bytes(each.new)) for each in state] == [  # type: ignore[arg-type]
        ("state.done", b"21", b"1"),
        ("state.last", b'"effect 19"', b'"effect 0"'),
    ]


async def test_another_order_of_different_steps_is_no_difference(callboard_world: World) -> None:
    class Backwards(Digger, name="digger"):
        @on
        async def dig(self, m: Work) -> list[str]:
            found = [await self.step("dig", effect, number) for number in reversed(range(m.steps))][::-1]
            self.state.done += len(found)
            self.state.last = found[-1]
            self.tell("heap/a", Work(len(found)))
            self.emit("dug", {"count": len(found)})
            return found

    await dug(callboard_world)
    found = await again(callboard_world, Backwards)
    assert (found.is_equal, found.steps) == (True, 20), found


async def test_another_mail_and_another_event_are_differences(callboard_world: World) -> None:
    class Louder(Digger, name="digger"):
        @on
        async def dig(self, m: Work) -> list[str]:
            found = [await self.step("dig", effect, number) for number in range(m.steps)]
            self.state.done += len(found)
            self.state.last = found[-1]
            self.tell("heap/b", Work(len(found)))
            self.emit("dug", {"count": -1})
            return found

    await dug(callboard_world)
    found = await again(callboard_world, Louder)
    assert [(each.kind, each.text.partition(":")[0]) for each in found.differences] == [
        ("sent", "mail Work to heap/a"),
        ("sent", "event dug"),
        ("sent", "mail Work to heap/b"),
    ], found


async def test_a_changed_record_is_found(callboard_world: World) -> None:
    """Negative control: the records count, and not what the code would compute."""
    await dug(callboard_world)
    stored = await callboard_world.bus.get_many(subjects.ACTORS, ["cb.step.digger.a.>"])
    victim = stored[9]
    wrong = msgspec.structs.replace(step.decode(victim.data), value=msgspec.Raw(b'"another"'))
    for stream in (subjects.AUDIT, subjects.GAPS):
        await callboard_world.bus.delete_stream(stream)
    headers = header.build(rollup=True)
    _ = await callboard_world.bus.store(Write(victim.subject, step.encode(wrong), headers))
    found = await again(callboard_world, Digger)
    assert [each.kind for each in found.differences] == ["reply"], found
    assert bytes(found.differences[0].changes[0].new) == b'"another"'  # type: ignore[arg-type]


class Way(Struct):
    out: str = ""


async def test_ways_out_of_a_turn_are_refused_and_named(callboard_world: World, tmp_path: Path) -> None:
    """A handler that reaches outside beside its steps: with the real worker it does, on records it cannot."""
    reached: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    class Leaky(Actor, name="leaky"):
        @on
        async def leak(self, m: Way) -> str:
            try:
                await self._leak(m.out)
            except (OSError, BusError) as error:
                return type(error).__name__
            reached.append(m.out)
            return "out"

        async def _leak(self, way: str) -> None:
            match way:
                case "socket":
                    socket.create_connection(("127.0.0.1", port)).close()
                case "open":
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                case "program":
                    _ = await asyncio.create_subprocess_exec("true")
                case "thread":
                    _ = await asyncio.to_thread(subprocess.run, ["true"], check=True)
                case "store":
                    _ = await current_turn().bus.store(Write(subjects.event("leaky", "a"), b"1"))
                case _:
                    _ = await current_turn().bus.request("cb.ask.heap.a", b"{}")

    running = await callboard_world.start(Leaky, Heap)
    ways = ["socket", "open", "program", "thread", "store", "request"]
    seqs = []
    for way in ways:
        _ = await callboard_world.client.actor("leaky/a").ask(Way(way))
        seqs.append((await record_of(callboard_world, "leaky/a")).mail)
    await running.stop()
    assert reached == ways[:5] or reached == ways
    reached.clear()
    before = await contents(callboard_world)
    for way, seq in zip(ways, seqs, strict=True):
        found = await rerun(callboard_world.bus, Leaky, parse("leaky/a"), seq)
        assert found.first is not None, way
        assert (found.first.kind, len(found.tried)) == ("outside", 1), (way, found)
    assert reached == []
    assert await contents(callboard_world) == before
    listener.close()


async def test_what_is_not_kept_is_told(callboard_world: World) -> None:
    await dug(callboard_world)
    with pytest.raises(NotFoundError, match="nothing is kept of a turn of digger/b"):
        _ = await rerun(callboard_world.bus, Digger, parse("digger/b"))
    with pytest.raises(NotFoundError, match="no turn of mail 1"):
        _ = await again(callboard_world, Digger, seq=1)


async def test_steps_that_have_expired_are_no_difference(callboard_world: World) -> None:
    await dug(callboard_world)
    for stream in (subjects.AUDIT, subjects.GAPS):
        await callboard_world.bus.delete_stream(stream)
    _ = await callboard_world.bus.purge(subjects.ACTORS, subject="cb.step.digger.a.>")
    with pytest.raises(HistoryError, match="records of its steps have expired"):
        _ = await again(callboard_world, Digger, step_ttl_s=0.0)


class Hold(Struct):
    word: str


class Held(Actor, name="held"):
    State = State
    holds: ClassVar[bool] = True

    @on
    async def hold(self, m: Hold) -> str:
        for number in range(3):
            _ = await self.step(m.word, effect, number)
        if self.holds:
            await asyncio.Event().wait()
        _ = await self.step("later", effect, 3)
        return m.word


class Other(Held, name="held"):
    @on
    async def hold(self, m: Hold) -> str:
        _ = await self.step(m.word, effect, 0)
        _ = await self.step("another", effect, 1)
        return m.word


class Free(Held, name="held"):
    holds = False


async def test_a_turn_that_was_stopped_is_compared_up_to_there(callboard_world: World) -> None:
    running = await callboard_world.start(Held)
    ref = callboard_world.client.actor("held/a")
    await ref.tell(Hold("go"))
    await eventually(lambda: 2 in Calls.made)
    order = msgspec.json.encode({"op": "cancel", "reason": "enough"})
    _ = await callboard_world.bus.request("cb.ctl.actor.held.a", order)
    await handled(callboard_world, "held/a", 1)
    await running.stop()
    Calls.made.clear()
    for actor in (Free, Held):
        found = await rerun(callboard_world.bus, actor, parse("held/a"), timeout_s=0.5)
        assert (found.is_equal, found.steps, found.stopped) == (True, 3, "enough"), found
    changed = await rerun(callboard_world.bus, Other, parse("held/a"))
    assert changed.first is not None
    assert (changed.first.kind, changed.first.name) == ("step", "another")
    assert Calls.made == []


async def test_a_turn_that_failed_for_good_is_equal_when_it_fails_so_again(callboard_world: World) -> None:
    class Sour(Actor, name="sour", retry=RetryPolicy(attempts=2, gaps_s=(0.01,))):
        @on
        async def taste(self, m: Hold) -> str:
            _ = await self.step("taste", effect, 1)
            message = "sour"
            raise TerminalError(message) if m.word == "end" else RetryableError(message)

    class Sweet(Actor, name="sour"):
        @on
        async def taste(self, m: Hold) -> str:
            return await self.step("taste", effect, 1)

    running = await callboard_world.start(Sour)
    for word in ("end", "again"):
        with pytest.raises(AskFailedError):
            await callboard_world.client.actor("sour/a").ask(Hold(word), idempotency_key=word)
        assert (await rerun(callboard_world.bus, Sour, parse("sour/a"))).is_equal
        found = await rerun(callboard_world.bus, Sweet, parse("sour/a"))
        assert [each.kind for each in found.differences] == ["error"], found
    await running.stop()


async def test_code_that_fails_half_way_parts_where_it_fails(callboard_world: World) -> None:
    class Broken(Digger, name="digger"):
        @on
        async def dig(self, m: Work) -> list[str]:
            found = [await self.step("dig", effect, number) for number in range(m.steps // 2)]
            return [found[99]]

    await dug(callboard_world)
    found = await again(callboard_world, Broken)
    assert [(each.kind, each.name) for each in found.differences] == [("error", "IndexError")], found
    assert found.steps == 10


async def test_large_values_and_times_are_equal(callboard_world: World) -> None:
    class Big(Struct):
        text: str = ""
        at: datetime | None = None

    class Heavy(Actor, name="heavy"):
        State = Big

        @on
        async def lift(self, m: Hold) -> dict[str, Any]:
            self.state.text = await self.step("lift", self._text, 400_000)
            self.state.at = current_turn().clock.now()
            self.tell("heap/a", Work(1))
            return {"text": self.state.text, "at": datetime.now(UTC)}

        def _text(self, size: int) -> str:
            return "x" * size

    running = await callboard_world.start(Heavy, Heap)
    _ = await callboard_world.client.actor("heavy/a").ask(Hold("up"), idempotency_key="1")
    await handled(callboard_world, "heap/a", 1)
    await running.stop()
    found = await rerun(callboard_world.bus, Heavy, parse("heavy/a"))
    assert (found.is_equal, found.steps) == (True, 1), found
