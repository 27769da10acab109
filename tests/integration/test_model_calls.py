"""Calls of models as steps of turns: recorded, streamed, repeated only where nothing was recorded."""

from __future__ import annotations

from decimal import Decimal

from msgspec import Struct

from callboard.agents.llm import record, watch
from callboard.agents.llm.base import Prompt, Usage, user
from callboard.agents.llm.call import call_model
from callboard.agents.llm.scripted import Say, Scripted
from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import RetryableError
from callboard.runtime.retry import RetryPolicy
from tests.support.world import World

FAST = RetryPolicy(attempts=3, gaps_s=(0.02,))


class Question(Struct):
    text: str
    fails: bool = False


class Thinker(Actor, retry=FAST):
    model: Scripted = Scripted()
    runs: int = 0

    @on
    async def think(self, m: Question) -> str:
        type(self).runs += 1
        found = await call_model(self, self.model, Prompt(messages=(user(m.text),), version="v1"), run="r1")
        if m.fails and self.attempt == 1:
            text = "once more"
            raise RetryableError(text)
        return found.text


async def records(world: World) -> list[record.Record]:
    found = []
    for stored in await world.bus.get_many(subjects.ACTORS, ["cb.step.>"]):
        value = step.decode(stored.data).value
        if isinstance(value, bytes | bytearray) or value is not None:
            data = bytes(value)  # type: ignore[arg-type]
            if record.is_record(data):
                found.append(record.decode(data))
    return found


async def test_a_call_is_recorded_once_and_a_later_run_of_the_turn_pays_nothing(callboard_world: World) -> None:
    said = Say(text="four", usage=Usage(input_tokens=10, output_tokens=1), cost_usd=Decimal("0.0012"))
    Thinker.model = Scripted([said])
    Thinker.runs = 0
    await callboard_world.start(Thinker)
    answer = await callboard_world.client.actor("thinker/a").ask(Question("two and two?", fails=True))

    assert answer == "four"
    assert (Thinker.runs, Thinker.model.calls) == (2, 1)
    found = await records(callboard_world)
    (begun,) = [one for one in found if isinstance(one, record.ModelInput)]
    (call,) = [one for one in found if isinstance(one, record.ModelCall)]
    assert (begun.step, begun.attempt, begun.version) == (call.step, 1, "v1")
    assert (call.run, call.agent, call.provider, call.category) == ("r1", "thinker", "scripted", "work")
    assert (call.usage.tokens, call.cost_usd, call.finish) == (11, Decimal("0.0012"), "stop")


async def test_a_failed_call_leaves_its_record_and_is_asked_again(callboard_world: World) -> None:
    Thinker.model = Scripted([Say(text="half an", cut_after=1), "whole"])
    await callboard_world.start(Thinker)
    assert await callboard_world.client.actor("thinker/b").ask(Question("again?")) == "whole"

    found = await records(callboard_world)
    (failed,) = [one for one in found if isinstance(one, record.ModelFailure)]
    (call,) = [one for one in found if isinstance(one, record.ModelCall)]
    assert (failed.code, failed.text, failed.attempt) == ("model_transient", "half ", 1)
    assert failed.usage.output_tokens > 0
    assert (call.attempt, call.step) == (2, failed.step)
    chunks = [chunk async for chunk in watch.read_chunks(callboard_world.bus, "r1", follow=False)]
    assert [(chunk.attempt, chunk.text) for chunk in chunks if chunk.end][-1] == (2, "whole")
    assert {chunk.attempt for chunk in chunks} == {1, 2}
