"""The loop of an agent: ask the model, run the tools that it wants, show it what they returned, until it is done.

Each answer of the model and each call of a tool is a journaled step, so that a loop which is taken over goes on behind
the last one that was recorded. Between two rounds, at a turn edge, it looks whether it may go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from callboard.agents import window
from callboard.agents.errors import BudgetExceededError, ModelError, ModelOutputError, ModelRefusedError
from callboard.agents.llm import typed
from callboard.agents.llm.base import Completion, Message, Model, Prompt, ToolCall, Usage, user
from callboard.agents.llm.call import call_model
from callboard.agents.message import Status
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.tools.approver import Approver
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.batch import invoke_all
from callboard.agents.tools.permission import Permissions
from callboard.agents.window import Window
from callboard.runtime.actor.turn_api import TurnApi

MAX_TURNS = 12
REPAIRS = 2
TOOLS_AT_ONCE = 4
# Share of the context that is left for the answer where nothing says how long it may be.
ANSWER_SHARE = 4
# Words of ``TurnApi.stop`` after which the turn goes on nowhere; a time-out is tried again.
_FOR_GOOD = frozenset({"cancel", "deadline"})


class Plan(Struct, frozen=True, kw_only=True):
    """What a loop runs with.

    Attributes:
        model: Who answers.
        instructions: What it is told before everything else.
        tools: What it may call; those that permissions refuse are not shown to it, and refused if called.
        permissions: What it may do.
        sandbox: Where sandboxed tools run; None where none is set up.
        approve: Asks a person before a call that needs it.
        folder: The one folder that tools may use; None for none.
        output: Type of the answer; None for text.
        max_turns: Calls of the model.
        temperature: 0 to 2; None for the provider's own.
        max_output_tokens: Longest answer; None for the provider's own.
        context_tokens: Room for prompt and answer; None for the model's own.
        budgets: Returns the scopes that pay for the next call; None for none.
        run: The run that it is part of, under which tokens are streamed and cost is summed up.
        agent: Address of the agent.
    """

    model: Model
    instructions: str = ""
    tools: tuple[Tool, ...] = ()
    permissions: Permissions = Permissions()
    sandbox: Sandbox | None = None
    approve: Approver | None = None
    folder: Path | None = None
    output: Any = None
    max_turns: int = MAX_TURNS
    temperature: float | None = None
    max_output_tokens: int | None = None
    context_tokens: int | None = None
    budgets: Callable[[], Awaitable[tuple[str, ...]]] | None = None
    run: str = ""
    agent: str = ""


class Ended(Struct, kw_only=True):
    """How a loop ended, and what there was by then.

    Attributes:
        status: ``done``; ``max_turns``; ``budget``, ``stopped`` (what there is is a part); ``refused`` by model or
            provider; ``failed``.
        text: The answer, or the last words before the end.
        output: The answer as the type that was asked for; None unless done.
        turns: Calls of the model.
        tools: Calls of tools.
        usage: Tokens of all calls.
        cost_usd: Exact price of all calls; None if that of one is not known.
        model: Who gave the last answer, ``provider/model``.
        reason: Why it ended, for people; "" when it is simply done.
        messages: The task and all that followed.
        error: What it failed by; what tools fail by is told to the model.
    """

    status: Status
    text: str = ""
    output: Any = None
    turns: int = 0
    tools: int = 0
    usage: Usage = Usage()
    cost_usd: Decimal | None = Decimal(0)
    model: str = ""
    reason: str = ""
    messages: tuple[Message, ...] = ()
    error: Exception | None = None


async def react(
    turn: TurnApi, plan: Plan, task: Message, *, history: Sequence[Message] = (), name: str = "model"
) -> Ended:
    """Run the loop to one of its ends.

    Costs what ``call_model`` and ``invoke_all`` cost, for each round.

    Args:
        turn: The turn that it runs in; its journal keeps every step.
        plan: What to run with.
        task: What is asked.
        history: The conversation before; the window leaves its oldest parts out when room is short.
        name: Name of the steps; two loops in one turn with the same prompts are told apart by their order.

    Raises:
        CancelledError: If the turn goes on elsewhere. One that was ended for good is an end: ``stopped``.
        ModelError: One that passes, so that the turn is tried again from its journal; others are an end, ``failed``.
    """
    loop = _Loop(turn, plan, task, history, name)
    try:
        return await loop.run()
    except asyncio.CancelledError:
        stop = turn.stop
        if stop is None or stop[0] not in _FOR_GOOD:
            raise
        return loop.ended("stopped", stop[1])


class _Loop:
    """One run of the loop."""

    def __init__(self, turn: TurnApi, plan: Plan, task: Message, history: Sequence[Message], name: str) -> None:
        self._turn = turn
        self._plan = plan
        self._name = name
        self._head = _head(plan)
        self._history = tuple(history)
        self._said: list[Message] = [task]
        self._tools = tuple(plan.permissions.visible(plan.tools))
        self._schema = None if plan.output is None else typed.schema(plan.output)
        self._sum = Ended(status="failed")
        self._repairs = 0

    async def run(self) -> Ended:
        plan = self._plan
        while self._sum.turns < plan.max_turns:
            try:
                answer = await self._ask()
            except BudgetExceededError as error:
                return self.ended("budget", str(error))
            except ModelRefusedError as error:
                return self.ended("refused", str(error))
            except ModelError as error:
                if error.retryable:
                    raise
                return self.ended("failed", str(error), error=error)
            if answer.finish == "refused":
                return self.ended("refused", answer.text or "the model declined to answer")
            if answer.tool_calls:
                if self._sum.turns >= plan.max_turns:
                    break
                await self._call(answer.tool_calls)
                continue
            found = self._finish(answer)
            if found is not None:
                return found
        return self.ended("max_turns", f"after {self._sum.turns} calls of the model: raise max_turns for more")

    def ended(self, status: Status, reason: str = "", *, error: Exception | None = None) -> Ended:
        """Return the end, with what was said last."""
        found = self._sum
        found.status, found.reason, found.error = status, reason, error
        found.messages = tuple(self._said)
        if not found.text:
            found.text = next((m.text for m in reversed(self._said) if m.role == "assistant" and m.text), "")
        return found

    async def _ask(self) -> Completion:
        """Have the model answer what was said so far."""
        plan = self._plan
        answer = await call_model(
            self._turn,
            plan.model,
            self._prompt(),
            name=self._name,
            run=plan.run,
            agent=plan.agent,
            budgets=await plan.budgets() if plan.budgets is not None else (),
        )
        found = self._sum
        found.turns += 1
        found.model = answer.model or plan.model.name
        found.usage = _sum(found.usage, answer.usage)
        if found.cost_usd is not None:
            found.cost_usd = None if answer.cost_usd is None else found.cost_usd + answer.cost_usd
        self._said.append(Message(role="assistant", text=answer.text, tool_calls=answer.tool_calls))
        return answer

    def _prompt(self) -> Prompt:
        """Return what the model is asked now: as much as fits, the results of tools in fences."""
        plan, facts = self._plan, self._plan.model.facts
        room = plan.context_tokens or facts.context_tokens
        answer = plan.max_output_tokens or min(facts.max_output_tokens, room // ANSWER_SHARE)
        shown = Window(head=self._head, history=self._history, task=tuple(self._said))
        packed = window.pack(
            shown, limit_tokens=room - answer, count=lambda found: plan.model.count_tokens(self._of(found))
        )
        return self._of(packed)

    def _of(self, messages: Sequence[Message]) -> Prompt:
        plan = self._plan
        return Prompt(
            messages=window.fenced(messages),
            tools=tuple(tool.spec for tool in self._tools),
            output=self._schema,
            temperature=plan.temperature,
            max_output_tokens=plan.max_output_tokens,
            version=version_of(plan.instructions),
        )

    async def _call(self, calls: Sequence[ToolCall]) -> None:
        """Run the calls of an answer and say what they returned, in their order."""
        plan = self._plan
        results = await invoke_all(
            self._turn,
            calls,
            tools=plan.tools,
            permissions=plan.permissions,
            sandbox=plan.sandbox,
            approve=plan.approve,
            folder=plan.folder,
            cap=TOOLS_AT_ONCE,
        )
        self._sum.tools += len(results)
        self._said += [_told(result) for result in results]

    def _finish(self, answer: Completion) -> Ended | None:
        """Return the end that an answer without calls is; None if it has not the form that was asked for."""
        found, plan = self._sum, self._plan
        note = "the answer was cut off at max_output_tokens" if answer.finish == "length" else ""
        if plan.output is not None:
            try:
                found.output = typed.parse(answer.text, plan.output, model=found.model)
            except ModelOutputError as error:
                if self._repairs >= REPAIRS:
                    return self.ended("failed", f"{error}. {note}".removesuffix(". "), error=error)
                self._repairs += 1
                self._said.append(user(typed.complaint(error)))
                return None
        found.text = answer.text
        return self.ended("done", note)


def version_of(instructions: str) -> str:
    """Return 8 hex digits that name a version of instructions; calls are recorded with it."""
    return blake2b(instructions.encode(), digest_size=4).hexdigest()


def _head(plan: Plan) -> tuple[Message, ...]:
    parts = [plan.instructions, window.FENCE_RULE]
    if plan.output is not None and not plan.model.facts.has_schema:
        # nobody holds its provider to the schema: it must be told
        shown = msgspec.json.encode(typed.schema(plan.output)).decode()
        parts.append(f"When you are done, answer with JSON alone that follows this JSON Schema:\n{shown}")
    return (Message(role="system", text="\n\n".join(filter(None, parts))),)


def _told(result: ToolResult) -> Message:
    return Message(role="tool", text=result.text, tool_call_id=result.call_id, name=result.tool)


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )
