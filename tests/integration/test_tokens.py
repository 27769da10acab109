"""Tokens of running calls: a late watcher has the same text, a lost link loses nothing, attempts are never mixed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from msgspec import Struct

from callboard.agents.llm import typed
from callboard.agents.llm.base import Prompt, Usage, user
from callboard.agents.llm.call import call_model
from callboard.agents.llm.history import read_calls
from callboard.agents.llm.record import ModelCall
from callboard.agents.llm.router import Router
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.llm.tokens import Chunk, TokensEnd, TokenWriter, subject_of
from callboard.agents.llm.watch import Transcript, read_chunks, watch
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.step import id_of
from callboard.runtime.bus.topology import TOKENS
from callboard.runtime.errors import AskFailedError, InvalidNameError
from callboard.runtime.retry import RetryPolicy
from tests.support.world import World

LONG = "".join(f"word{number} " for number in range(60))
RUN = "flow/7 a.b"


class Tell(Struct):
    text: str = "go"


class Guess(Struct):
    text: str


class Number(Struct):
    value: int


class Teller(Actor, retry=RetryPolicy(attempts=2, gaps_s=(0.02,))):
    model: Any = None

    @on
    async def tell_all(self, m: Tell) -> str:
        return (await call_model(self, self.model, Prompt(messages=(user(m.text),)), run=RUN)).text

    @on
    async def guess(self, m: Guess) -> int:
        found: Number = await typed.call_typed(self, self.model, Prompt(messages=(user(m.text),)), Number, run=RUN)
        return found.value


async def text_of(world: World, *, transcript: Transcript | None = None, cut_after: int = -1) -> Transcript:
    """Follow the run until its first step has ended, or until so many chunks came."""
    mine = transcript or Transcript()
    async with aclosing(watch(world.bus, RUN, transcript=mine)) as chunks:  # type: ignore[type-var] # a generator
        async for chunk in chunks:
            cut_after -= 1
            if cut_after == 0 or (chunk.end is not None and not chunk.end.error and chunk.step not in mine.torn):
                break
    return mine


async def test_a_late_watcher_gets_the_stored_prefix_and_the_rest(callboard_world: World) -> None:
    Teller.model = Scripted([Say(text=LONG, gap_s=0.01)])
    await callboard_world.start(Teller)
    early = asyncio.create_task(text_of(callboard_world))
    asked = asyncio.create_task(callboard_world.client.actor("teller/a").ask(Tell()))
    await text_of(callboard_world, cut_after=3)
    late = await text_of(callboard_world)
    assert await asked == LONG
    assert list(late.texts.values()) == list((await early).texts.values()) == [LONG]
    (end,) = late.ends.values()
    assert end.usage.output_tokens > 0
    # pieces came together into chunks
    assert 2 < len([chunk async for chunk in read_chunks(callboard_world.bus, RUN, follow=False)]) < 60


async def test_a_watcher_whose_link_is_cut_again_and_again_loses_nothing(callboard_world: World) -> None:
    Teller.model = Scripted([Say(text=LONG, gap_s=0.01)])
    await callboard_world.start(Teller)
    asked = asyncio.create_task(callboard_world.client.actor("teller/a").ask(Tell()))
    mine = Transcript()
    while not mine.ends:
        await text_of(callboard_world, transcript=mine, cut_after=1)
    assert await asked == LONG
    assert list(mine.texts.values()) == [LONG]
    assert mine.torn == set()


async def test_what_has_expired_is_taken_from_the_records(callboard_world: World) -> None:
    Teller.model = Scripted(["first answer", "second answer"])
    await callboard_world.start(Teller)
    await callboard_world.client.actor("teller/a").ask(Tell("one"))
    await callboard_world.bus.purge(TOKENS)
    await callboard_world.client.actor("teller/a").ask(Tell("two"))
    mine = Transcript()
    chunks = [chunk async for chunk in watch(callboard_world.bus, RUN, transcript=mine, follow=False)]
    assert list(mine.texts.values()) == ["first answer", "second answer"]
    assert [chunk.is_whole for chunk in chunks] == [True, False]
    # and who has it all gets nothing twice
    assert [chunk async for chunk in watch(callboard_world.bus, RUN, transcript=mine, follow=False)] == []


async def test_a_text_with_a_hole_is_made_whole_from_its_record(callboard_world: World) -> None:
    Teller.model = Scripted([Say(text=LONG, gap_s=0.005)])
    await callboard_world.start(Teller)
    await callboard_world.client.actor("teller/a").ask(Tell())
    stored = [chunk async for chunk in read_chunks(callboard_world.bus, RUN, follow=False)]
    assert len(stored) > 2
    await callboard_world.bus.delete_message(TOKENS, stored[1].seq)
    mine = Transcript()
    chunks = [chunk async for chunk in watch(callboard_world.bus, RUN, transcript=mine, follow=False)]
    assert chunks[-1].is_whole
    assert list(mine.texts.values()) == [LONG]


async def test_a_switch_of_models_stands_in_the_record(callboard_world: World) -> None:
    down = Scripted([Say(error="model_transient", always=True)], name="a/x")
    Teller.model = Router([down, Scripted(["fine"], name="b/y")])
    await callboard_world.start(Teller)
    assert await callboard_world.client.actor("teller/a").ask(Tell()) == "fine"
    (call,) = [each async for each in read_calls(callboard_world.bus) if isinstance(each, ModelCall)]
    assert (call.model, call.provider) == ("b/y", "b")
    assert [(switch.model, switch.code) for switch in call.switches] == [("a/x", "model_transient")]


async def test_an_answer_that_is_no_number_is_asked_for_again(callboard_world: World) -> None:
    Teller.model = Scripted(["about seven", Say(text='{"value": 7}', when="no Number: there is no JSON|could not be")])
    await callboard_world.start(Teller)
    assert await callboard_world.client.actor("teller/a").ask(Guess("how many?")) == 7
    calls = [each async for each in read_calls(callboard_world.bus) if isinstance(each, ModelCall)]
    assert sorted(call.category for call in calls) == ["repair", "work"]


async def test_an_answer_that_never_fits_is_an_error_after_the_cap(callboard_world: World) -> None:
    Teller.model = Scripted([Say(text="about seven", always=True)])
    await callboard_world.start(Teller)
    with pytest.raises(AskFailedError, match="no Number: ") as caught:
        await callboard_world.client.actor("teller/a").ask(Guess("how many?"))
    assert (caught.value.cause_code, Teller.model.calls) == ("model_output", 1 + typed.REPAIRS)


# --- without a turn


def chunk(number: int, text: str, *, attempt: int = 1, end: bool = False, whole: bool = False) -> Chunk:
    ended = TokensEnd(finish="stop", usage=Usage()) if end else None
    return Chunk(run=RUN, step="s", attempt=attempt, number=number, text=text, end=ended, is_whole=whole)


def test_two_attempts_are_never_one_text() -> None:
    mine = Transcript()
    for each in (
        chunk(0, "old "),
        chunk(1, "text"),
        chunk(0, "new ", attempt=2),
        chunk(2, "!"),
        chunk(1, "one", attempt=2),
    ):
        mine.add(each)
    assert mine.texts == {"s": "new one"}
    assert not mine.add(chunk(1, "one", attempt=2))
    assert mine.torn == set()


def test_a_missing_chunk_is_noticed() -> None:
    mine = Transcript()
    mine.add(chunk(0, "a"))
    mine.add(chunk(2, "c", end=True))
    assert mine.torn == {"s"}
    mine.add(chunk(0, "abc", whole=True, end=True))
    assert (mine.texts, mine.torn) == ({"s": "abc"}, set())


async def test_a_call_goes_on_where_tokens_cannot_be_stored(callboard_world: World) -> None:
    await callboard_world.bus.delete_stream(TOKENS)
    Teller.model = Scripted(["fine"])
    await callboard_world.start(Teller)
    assert await callboard_world.client.actor("teller/a").ask(Tell()) == "fine"


async def test_what_is_no_chunk_is_passed_over(callboard_world: World) -> None:
    world = callboard_world
    await world.bus.publish(subject_of(RUN), b"nonsense")
    step = id_of("teller/a/1", "model.0.0")
    async with TokenWriter(world.bus, world.clock, run=RUN, agent="a", step=step, attempt=1) as writer:
        writer.put("fine")
        await writer.end(TokensEnd(finish="stop"))
    chunks = [each async for each in read_chunks(world.bus, RUN, follow=False)]
    assert [(each.text, each.number) for each in chunks] == [("fine", 0)]


@pytest.mark.parametrize("run", ["", "x" * 300])
def test_a_run_that_can_be_no_subject_is_refused(run: str) -> None:
    with pytest.raises(InvalidNameError):
        subject_of(run)
