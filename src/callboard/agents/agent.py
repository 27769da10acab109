"""``Agent``: an actor that thinks. A model answers its tasks, with tools, within fences and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import fields, replace

from callboard.agents import approval, consent, loop, mind, profile, shared, window
from callboard.agents.approval import Grant
from callboard.agents.budget import Budget as BudgetActor
from callboard.agents.llm.base import Message, Model, user
from callboard.agents.loop import Ended, Plan
from callboard.agents.message import AgentResult, Task
from callboard.agents.profile import Budget, Profile
from callboard.agents.purse import Purse
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.shared import SharedContext
from callboard.agents.tools.base import Tool
from callboard.agents.tools.permission import Level, Permissions
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.options import ActorOptions
from callboard.runtime.errors import ActorDefinitionError

_ACTOR_WORDS = frozenset({"name", "abstract", *(field.name for field in fields(ActorOptions))})


class AgentState(Struct):
    """What an agent keeps between tasks; a ``State`` of your own extends it.

    Attributes:
        messages: The conversation, oldest first, as long as ``memory`` says.
        tasks: Tasks that it has ended.
    """

    messages: list[Message] = []
    tasks: int = 0


class Begun(Struct, frozen=True, kw_only=True):
    """What a task began with; it stands in the journal, so that a turn which runs again asks the same questions."""

    task: Task
    messages: list[Message]


class Agent(Actor, abstract=True):
    """Base of all agents: an actor whose tasks a model works on. The docstring of a subclass is its instructions.

    It takes ``Task`` and answers ``AgentResult``. Each answer of the model and each call of a tool is a journaled step:
    a host that takes over goes on behind the last one. It ends for one of six reasons; see ``AgentResult``. What it
    cannot do at all (no key, an unknown model) fails the turn like any error of a handler, so that asker, dead letter
    and ``callboard agents requeue`` are as with any actor.

    The class statement takes, beside what every actor takes: ``model`` (a name ``provider/model``, a list of them, each
    asked when the one before it fails, or a model; default: that of the settings, else the extractive one), ``tools``,
    ``output`` (type of the answer), ``permissions`` or ``level``, ``sandbox``, ``folder``, ``approvers``, ``max_turns``
    (12), ``budget``, ``temperature``, ``max_output_tokens``, ``memory`` (0: each task alone) and ``context_tokens``;
    see ``Profile``. A subclass inherits them.

    Attributes:
        profile: What the class statement says.
        instructions: What the model is told before everything else.
    """

    State: ClassVar[Any] = AgentState
    companions: ClassVar[Sequence[type[Actor]]] = (*approval.COMPANIONS, *shared.COMPANIONS, BudgetActor)

    profile: ClassVar[Profile] = Profile()
    instructions: ClassVar[str] = ""

    def __init_subclass__(
        cls,
        *,
        model: str | Model | Sequence[str | Model] | UnsetType = UNSET,
        tools: Sequence[Tool | Any] | UnsetType = UNSET,
        output: Any = UNSET,  # noqa: ANN401 - any type that can be decoded into
        permissions: Permissions | UnsetType = UNSET,
        level: Level | UnsetType = UNSET,
        sandbox: str | Sandbox | UnsetType | None = UNSET,
        folder: str | Path | UnsetType | None = UNSET,
        approvers: str | UnsetType = UNSET,
        max_turns: int | UnsetType = UNSET,
        budget: Budget | dict[str, Any] | UnsetType = UNSET,
        temperature: float | UnsetType | None = UNSET,
        max_output_tokens: int | UnsetType | None = UNSET,
        memory: int | UnsetType = UNSET,
        context_tokens: int | UnsetType | None = UNSET,
        **actor: Any,  # noqa: ANN401 - as Actor takes them
    ) -> None:
        given = {
            "model": model,
            "tools": tools,
            "output": output,
            "permissions": permissions,
            "level": level,
            "sandbox": sandbox,
            "folder": folder,
            "approvers": approvers,
            "max_turns": max_turns,
            "budget": budget,
            "temperature": temperature,
            "max_output_tokens": max_output_tokens,
            "memory": memory,
            "context_tokens": context_tokens,
        }
        _check_words(cls, actor, given)
        super().__init_subclass__(**actor)
        stated = {name: value for name, value in given.items() if value is not UNSET}
        cls.profile = profile.checked(cls, stated, base=cls.profile)
        cls.instructions = profile.instructions_of(cls, Agent)
        _check_class(cls)

    # --- people, and what is shared

    @property
    def context(self) -> SharedContext:
        """The shared context, during a turn: scope ``global``, and from there ``.private`` and ``.run(id)``."""
        return SharedContext(self)

    async def approve(self, payload: object, **how: Any) -> Grant:  # noqa: ANN401 - as approval.approve
        """Ask people whether ``payload`` may be done, and wait without holding anything. See ``approval.approve``.

        Raises:
            ApprovalDeniedError: If the answer was no.
        """
        return await approval.approve(self, payload, **how)

    # --- what a subclass may do its own way

    async def prepare(self, task: Task) -> Task | None:
        """Return the task as the model shall see it, with more context for instance; None leaves it as it is.

        It runs again when the turn does; what it returned first counts. Ask for what it needs in steps.
        """

    async def finish(self, task: Task, result: AgentResult) -> AgentResult | None:
        """Return the result as the asker shall have it; None leaves it as it is. Changes of the state go here.

        Not called when the turn fails. A task that was stopped has a second left.
        """

    # --- tasks

    @on
    async def do_task(self, task: Task) -> AgentResult:
        """Work on a task. A turn that runs again goes on behind the last answer and the last tool on record."""
        begun = await self._begin(task)
        mind_ = mind.of(self.profile.models)
        ended = await self._react(begun.task, mind_.model, history=begun.messages)
        if ended.error is not None and ended.status == "failed":
            raise ended.error
        result = _result(ended, note=mind_.note if ended.turns else "")
        result = await self.finish(begun.task, result) or result
        self.state.tasks += 1
        self.state.messages = window.remember(self.state.messages, ended.messages, limit=self.profile.memory)
        return result

    # --- for handlers of one's own

    async def think(self, text: str, *, output: Any = None, name: str = "think") -> Any:  # noqa: ANN401 - as asked for
        """Return the model's answer to a text, without tools and without the conversation.

        Args:
            text: What is asked; the instructions go before it.
            output: Type of the answer; None for text.
            name: Name of the step.

        Raises:
            ModelError: One of its subclasses.
            BudgetExceededError: If the agent may not spend more.
        """
        ended = await self.run_loop(text, tools=(), output=output, name=name, max_turns=1 + loop.REPAIRS)
        if ended.error is not None:
            raise ended.error
        if ended.status == "stopped":
            raise asyncio.CancelledError(ended.reason)
        return ended.text if output is None else ended.output

    async def run_loop(
        self,
        task: Task | str,
        *,
        tools: Sequence[Tool] | None = None,
        output: Any = UNSET,  # noqa: ANN401 - any type that can be decoded into
        max_turns: int | None = None,
        history: Sequence[Message] = (),
        name: str = "model",
    ) -> Ended:
        """Run the loop on a task and return how it ended; nothing of it is kept in the conversation.

        Args:
            task: What shall be done.
            tools: What may be called; default: the agent's tools. Permissions hold all the same.
            output: Type of the answer, None for text; default: the agent's.
            max_turns: Calls of the model; default: the agent's.
            history: Conversation before the task.
            name: Name of the steps.

        Raises:
            ModelError: One that passes: the turn is tried again from its journal.
        """
        changes: dict[str, Any] = {} if tools is None else {"tools": tuple(tools)}
        if output is not UNSET:
            changes["output"] = output
        if max_turns is not None:
            changes["max_turns"] = max_turns
        whole = Task(text=task) if isinstance(task, str) else task
        found = mind.of(self.profile.models)
        return await self._react(whole, found.model, history=history, name=name, changes=changes)

    # --- inside

    async def _begin(self, task: Task) -> Begun:
        """Return task and conversation as they were when the turn began for the first time."""
        own = await self.prepare(task) or task
        if not self.profile.memory and type(self).prepare is Agent.prepare:
            return Begun(task=own, messages=[])

        def begin() -> Begun:
            return Begun(task=own, messages=self.state.messages)

        # the state of a turn that was parked is that of the moment when it goes on
        found: Begun = await self.step("task", begin, key="task")
        return found

    async def _react(
        self,
        task: Task,
        model: Model,
        *,
        history: Sequence[Message],
        name: str = "model",
        changes: dict[str, Any] | None = None,
    ) -> Ended:
        own = self.profile
        turn = self._running("run_loop")
        purse = Purse(turn, own.budget, task.budgets, run=_name(self), settings=mind.settings())
        await purse.open()
        plan = Plan(
            model=model,
            instructions=self.instructions,
            tools=own.tools,
            permissions=own.permissions,
            sandbox=mind.sandbox_of(own.sandbox) if _needs_sandbox(own) else None,
            approve=consent.Consent(to=own.approvers),
            folder=own.folder,
            output=own.output,
            max_turns=own.max_turns,
            temperature=own.temperature,
            max_output_tokens=own.max_output_tokens,
            context_tokens=own.context_tokens,
            budgets=purse.scopes,
            run=task.run or _name(self),
            agent=self.address.type,
        )
        return await loop.react(turn, replace(plan, **(changes or {})), _said(task), history=history, name=name)


def _name(agent: Agent) -> str:
    """Return the name of a task that is no part of a run, as a run's own: ``<type>/<key>/<sequence of its mail>``."""
    return f"{agent.address.type}/{agent.address.token}/{agent.mail.seq}"


def _said(task: Task) -> Message:
    """Return what the model is told of a task."""
    about = window.described(task.context)
    return user(f"{task.text}\n\n{about}" if about else task.text)


def _needs_sandbox(own: Profile) -> bool:
    return own.sandbox is not None or any(tool.trust == "sandboxed" or tool.action == "execute" for tool in own.tools)


def _result(ended: Ended, *, note: str) -> AgentResult:
    return AgentResult(
        status=ended.status,
        text=ended.text,
        output=ended.output,
        reason=ended.reason,
        turns=ended.turns,
        usage=ended.usage,
        cost_usd=ended.cost_usd,
        model=ended.model,
        note=note,
    )


def _check_words(cls: type, actor: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a misspelt keyword in words; a mixin that takes keywords has an ``__init_subclass__`` of its own."""
    strange = sorted(set(actor) - _ACTOR_WORDS)
    bases = [base for base in cls.__mro__[1:] if base not in (Actor, Agent, object)]
    if strange and not any("__init_subclass__" in vars(base) for base in bases):
        known = ", ".join([*own, *sorted(_ACTOR_WORDS)])
        message = f"agent {cls.__qualname__} has no option {', '.join(strange)}: there are {known}"
        raise ActorDefinitionError(message)


def _check_class(cls: type[Agent]) -> None:
    if cls.is_abstract:
        return
    if not cls.instructions:
        message = f"agent {cls.__qualname__} has no instructions: write them as the docstring of the class"
        raise ActorDefinitionError(message)
    if not (isinstance(cls.State, type) and issubclass(cls.State, AgentState)):
        message = f"agent {cls.__qualname__}: its State must extend Agent.State: class State(Agent.State): ..."
        raise ActorDefinitionError(message)
