"""A run is watched while its link breaks again and again: every word comes, once and in order, and the end."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import Struct

from callboard.agents import runs
from callboard.agents.flow import flow
from callboard.agents.llm.tokens import Chunk, TokensEnd, TokenWriter
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_view import RunView
from callboard.agents.watching import watch
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.errors import NotFoundError
from tests.support.world import World

WORDS = 80


class Job(Struct):
    text: str


class Speaker(Actor, name="speaker"):
    """Says many words, one after the other."""

    @on
    async def work(self, m: Task) -> AgentResult:
        turn = current_turn()
        step = f"{self.address}/{self.mail.seq}/model"
        words = [f"{m.text}{number} " for number in range(WORDS)]
        writer = TokenWriter(turn.bus, turn.clock, run=m.run, agent="speaker", step=step, attempt=1, every_s=0.01)
        async with writer:
            for word in words:
                writer.put(word)
                await turn.clock.sleep(0.01)
            await writer.end(TokensEnd(finish="stop"))
        return AgentResult(status="done", text="".join(words))


@flow
async def speech(run: Run, job: Job) -> str:
    """Two speakers at a time."""
    found = await run.parallel(["speaker/a", "speaker/b"], job.text)
    return "|".join(each.text for each in found.results.values())


async def test_no_word_is_missed_while_the_link_breaks(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Speaker, speech)
    name = await runs.start(world.client, speech, Job("w"))
    bus = await world.connect("watcher")
    texts: dict[str, list[Chunk]] = {}
    views: list[RunView] = []
    broken = 0
    try:
        async for news in watch(bus, name):
            if isinstance(news, RunView):
                views.append(news)
                continue
            texts.setdefault(news.step, []).append(news)
            if sum(map(len, texts.values())) % 10 == 1:
                broken += 1
                await bus.reconnect()
    finally:
        await bus.close()
    assert broken > 2, "the link hardly broke: the test shows nothing"
    assert views[-1].status == "done"
    assert len(texts) == 2
    for chunks in texts.values():
        assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
        assert "".join(chunk.text for chunk in chunks) == "".join(f"w{number} " for number in range(WORDS))
        assert chunks[-1].end is not None


async def test_whoever_comes_late_gets_what_was_said_and_goes_on_where_he_was(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Speaker, speech)
    name = await runs.start(world.client, speech, Job("w"))
    assert await runs.wait(world.bus, name, timeout_s=20) is not None
    everything = [news async for news in watch(world.bus, name)]
    chunks = [news for news in everything if isinstance(news, Chunk)]
    assert isinstance(everything[-1], RunView)
    middle = chunks[len(chunks) // 2]
    rest = [news async for news in watch(world.bus, name, after_seq=middle.seq) if isinstance(news, Chunk)]
    assert [chunk.seq for chunk in rest] == [chunk.seq for chunk in chunks if chunk.seq > middle.seq]


async def test_a_run_that_is_not_there_is_not_watched(callboard_world: World) -> None:
    _ = await callboard_world.start(Speaker, speech)
    with pytest.raises(NotFoundError, match=r"there is no run speech/none; .* Flows: speech"):
        _ = await asyncio.wait_for(anext(watch(callboard_world.bus, "speech/none")), 10)
