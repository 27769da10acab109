"""The contract of agents: a class of tests that every agent's own tests may inherit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from callboard.agents.agent import Agent
from callboard.agents.llm.base import Model, ToolCall
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.message import AgentResult, Task
from callboard.agents.rerun import rerun_all
from callboard.runtime.errors import InputError
from callboard.runtime.testing import ManualWorld, world

_UNKNOWN = ToolCall(id="unknown-1", name="no-such-tool", arguments="{}")


class AgentContract:
    """What every agent does, whatever it is for; a class of tests inherits it and gives ``make``.

    ::

        class TestReviewer(AgentContract):
            task = Task("Review this text: ...")

            def make(self, model: Model) -> type[Agent]:
                class Under(Reviewer, name="reviewer", model=model):
                    __doc__ = Reviewer.__doc__

                return Under

    No provider is asked: the model plays a script. Each test has a whole Callboard in memory with a clock of its own.

    Attributes:
        task: What the agent is asked.
        says: What the model answers so that the task is done: one text, in the form of its ``output`` if it has one.
    """

    task: Task = Task("Do what you are for.")
    says: str = "It is done."

    def make(self, model: Model) -> type[Agent]:
        """Return the agent's class, thinking with ``model``.

        Raises:
            InputError: If the class does not say.
        """
        message = f"{type(self).__name__} gives no agent for {model.name}: give it `make`"
        raise InputError(message)

    # --- the promises

    async def test_it_says_what_it_is(self) -> None:
        agent = self.make(Scripted())
        assert agent.instructions, "an agent has instructions: its docstring"
        assert agent.actor_name

    async def test_a_task_is_done(self) -> None:
        model = Scripted([Say(text=self.says)])
        found = await self._asked(model)
        assert found.status == "done", found
        assert found.text == self.says
        assert (found.turns, model.calls) == (1, 1)
        assert found.usage.tokens > 0

    async def test_the_model_is_told_instructions_and_task(self) -> None:
        model = Scripted([Say(text=self.says)])
        agent = self.make(model)
        _ = await self._asked(model, agent=agent)
        said = [message.text for message in model.prompts[0].messages]
        assert any(agent.instructions.strip() in text for text in said), "the instructions are not in the prompt"
        assert any(self.task.text in text for text in said), "the task is not in the prompt"

    async def test_a_tool_that_there_is_not_is_told_to_the_model_and_no_end(self) -> None:
        model = Scripted([Say(tool_calls=(_UNKNOWN,)), Say(text=self.says)])
        found = await self._asked(model)
        assert (found.status, found.turns) == ("done", 2), found
        assert any(message.role == "tool" for message in model.prompts[1].messages)

    async def test_a_model_that_never_ends_is_ended(self) -> None:
        model = Scripted([Say(tool_calls=(_UNKNOWN,), always=True)])
        agent = self.make(model)
        found = await self._asked(model, agent=agent)
        assert found.status == "max_turns", found
        assert model.calls <= agent.profile.max_turns

    async def test_a_refusal_is_an_end(self) -> None:
        found = await self._asked(Scripted([Say(error="model_refused")]))
        assert found.status == "refused", found

    async def test_what_was_paid_is_not_paid_again_when_its_host_dies(self) -> None:
        model = Scripted([Say(tool_calls=(_UNKNOWN,)), Say(text="lost", delay_s=3600.0), Say(text=self.says)])
        agent = self.make(model)
        async with world() as callboard:
            _ = await callboard.start(agent, name="a")
            asking = asyncio.ensure_future(self._ask(callboard, agent))
            await callboard.until(lambda: model.calls == 2 or asking.done(), what="the second call of the model")
            assert not asking.done(), "it ended before its second call of the model"
            await callboard.crash("a")
            _ = await callboard.start(agent, name="b")
            await callboard.until(asking.done, what="the answer of the host that took over")
            found = asking.result()
        assert found.status == "done", found
        assert [_answers(prompt.messages) for prompt in model.prompts] == [0, 1, 1], "a recorded call was made again"

    async def test_it_runs_again_equal_on_its_records(self) -> None:
        model = Scripted([Say(tool_calls=(_UNKNOWN,)), Say(text=self.says)])
        agent = self.make(model)
        async with world() as callboard:
            _ = await callboard.start(agent)
            _ = await self._answer(callboard, agent)
            calls = model.calls
            found = await rerun_all(callboard.bus, {agent.actor_name: agent}, f"{agent.actor_name}/contract")
        assert model.calls == calls, "it asks its model outside of steps"
        assert found.is_equal, found.turns[0].first

    # --- how

    async def _asked(self, model: Scripted, *, agent: type[Agent] | None = None) -> AgentResult:
        kind = agent or self.make(model)
        async with world() as callboard:
            _ = await callboard.start(kind)
            return await self._answer(callboard, kind)

    async def _answer(self, callboard: ManualWorld, agent: type[Agent]) -> AgentResult:
        asking = asyncio.ensure_future(self._ask(callboard, agent))
        await callboard.until(asking.done, what="the answer of the agent")
        return asking.result()

    async def _ask(self, callboard: ManualWorld, agent: type[Agent]) -> AgentResult:
        to = callboard.actor(f"{agent.actor_name}/contract")
        found: AgentResult = await to.ask(self.task, returns=AgentResult, timeout_s=3600.0, idempotency_key="contract")
        return found


def _answers(messages: Sequence[Any]) -> int:
    return sum(message.role == "assistant" for message in messages)
