"""How a run asks an agent: whom, for how long, and who comes next when that one gives no result. All is journaled.

Two records a question: one before it, of whom and until when, and one of what came of it. A run that goes on elsewhere
asks the same agent the same question under the same id, and gets the answer that stands.
"""

from __future__ import annotations

import contextlib
import contextvars
import zlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, cast, get_args

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from callboard.agents.branch import Branch
from callboard.agents.errors import AgentFailedError
from callboard.agents.message import AgentResult, Status, Task
from callboard.agents.run_record import ANSWERED, ASKED, AgentRun, Begun, Outcome, RunResult, RunState, again
from callboard.runtime import codec
from callboard.runtime.actor import step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.capability import Capability
from callboard.runtime.errors import (
    AskFailedError,
    AskTimeoutError,
    BusError,
    CallboardError,
    DeadlineError,
    NoAgentError,
    NoHostError,
    RegistryAwayError,
    ReplyGoneError,
    TaskTimeoutError,
    TurnFencedError,
)
from callboard.runtime.registry.handle import AgentHandle
from callboard.runtime.registry.message import SERVED, Served

T = TypeVar("T")

# Longest wait for one agent where neither the run nor the caller names a time.
AGENT_S = 3600.0
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.1, 1.0
_AWAY = (NoAgentError, NoHostError, RegistryAwayError)
# It may fare better with another agent; one who has no budget left will not.
_FINAL = frozenset({"budget"})
# Of a result kept for a person to look at.
CUT = 2000


class Journaled(TurnApi, Protocol):
    """The turn of a run, with its journal."""

    @property
    def journal(self) -> Journal:
        """Its steps."""
        ...


class Scope:
    """What the parts of a run inside a branch share: a prefix of their names, and a time beyond which none waits."""

    __slots__ = ("counts", "is_beside", "prefix", "until")

    def __init__(self, prefix: str, until: datetime | None, *, is_beside: bool = False) -> None:
        """Begin with no names taken; ``is_beside`` where other branches work at the same time."""
        self.is_beside = is_beside
        self.prefix = prefix
        self.until = until
        self.counts: dict[str, int] = {}

    def name(self, label: str) -> str:
        """Return the next free name for a label."""
        count = self.counts.get(label, 0) + 1
        self.counts[label] = count
        return f"{self.prefix}{label}" if count == 1 else f"{self.prefix}{label}-{count}"


class Inherited(Struct, frozen=True, kw_only=True):
    """What every agent of a run is told.

    Attributes:
        run: The run's name, ``<flow>/<id>``.
        budgets: Scopes that pay, innermost first.
        deadline: When no answer is waited for any more.
        patience_s: How long it is looked for an agent, or for a host, that is not there.
    """

    run: str
    budgets: tuple[str, ...]
    deadline: datetime
    patience_s: float


scope_now: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("callboard_run_scope", default=None)


class Asking:
    """The agents of one attempt at a run.

    Attributes:
        inherited: What they are told.
        parts: Their records so far, by name and number of the try.
        missing: Names of those that gave no result and could be done without.
        outcomes: How the branches of its joins ended, by the join's name.
        kept: Results of former attempts, and of this one, by name and digest.
    """

    def __init__(self, turn: Journaled, begun: Begun, state: RunState, inherited: Inherited) -> None:
        """Flows make these."""
        self.turn = turn
        self.inherited = inherited
        self.parts: dict[tuple[str, int], AgentRun] = {}
        self.missing: list[str] = []
        self.kept: dict[str, Any] = dict(state.kept)
        self.outcomes: dict[str, list[Outcome]] = {}
        self.clock = turn.clock
        self._attempt = begun.attempt
        self._root = Scope("", inherited.deadline)

    @property
    def scope(self) -> Scope:
        """Where the calling code stands in the run."""
        return scope_now.get() or self._root

    async def ask(self, part: str, branch: Branch) -> AgentResult:
        """Ask one agent after the other until one is done, or nobody is left.

        Raises:
            AgentFailedError: If nobody was done.
        """
        digest = step.digest(
            part, [branch.to if isinstance(branch.to, str) else branch.label, _plain(branch.value), branch.context]
        )
        place = f"{ANSWERED} {part} {digest}"
        if place in self.kept:
            known = msgspec.convert(self.kept[place], AgentRun)
            self.parts[part, known.try_] = known
            return cast("AgentResult", known.result)
        failed: list[AgentRun] = []
        for number in range(1, branch.tries + 1):
            found = await self._try(part, branch, number, digest, [each.agent for each in failed])
            if found.status == "done" and found.result is not None:
                self.kept[place] = msgspec.to_builtins(found)
                return found.result
            if found.agent or not failed:
                failed.append(found)
            if not _has_second(branch, found, until=self._until(None), now=self.clock.now()):
                break
        raise _failed(part, failed)

    def open_parts(self, names: Sequence[str]) -> list[AgentRun]:
        """Return those of these parts that were asked and have not answered."""
        wanted = tuple(f"{name}/" for name in names)
        return [
            part
            for part in self.parts.values()
            if part.status == "running" and (part.name in names or part.name.startswith(wanted))
        ]

    # --- one agent

    async def _try(self, part: str, branch: Branch, number: int, digest: str, former: Sequence[str]) -> AgentRun:
        key = codec.canonical([part, number, digest]).decode()

        choice = _Choice(part, branch, lambda: self._choose(part, branch, number, digest, former))
        begun = await self.turn.step(ASKED, choice.make, key=key)
        self.parts[part, number] = begun
        if begun.status != "running":
            return cast("AgentRun", begun)

        async def answer() -> AgentRun:
            return await self._answer(begun, branch)

        found: AgentRun = await self.turn.step(ANSWERED, answer, key=key)
        self.parts[part, number] = replace(found, input=begun.input)
        return found

    async def _choose(self, part: str, branch: Branch, number: int, digest: str, former: Sequence[str]) -> AgentRun:
        now = self.clock.now()
        begun = AgentRun(
            name=part,
            status="running",
            try_=number,
            attempt=self._attempt,
            capability=_capability(branch),
            input=_plain(branch.value),
            began_at=now,
            until=self._until(branch.timeout_s),
            ask=step.short_id(f"{self.inherited.run}/{part}/{self._attempt}.{number}.{digest}"),
            is_optional=branch.is_optional,
        )
        try:
            agent = await self._whom(part, branch, former)
        except (*_AWAY, CallboardError) as error:
            if isinstance(error, (BusError, TurnFencedError)):
                raise
            return replace(begun, status="failed", error=_text(error), ended_at=self.clock.now())
        return replace(begun, agent=agent)

    async def _whom(self, part: str, branch: Branch, former: Sequence[str]) -> str:
        """Return the address of who is asked; "" for a pool."""
        own = f"{self.turn.key}/{part}"
        match branch.to:
            case str(to) if to.endswith("/"):
                return f"{to}{own}"
            case str(to) if "/" in to:
                return to
            case str() | Capability():
                capability = _capability(branch)
            case to:
                kind = cast("type[Actor]", to)
                return f"{kind.actor_name}/{own}"

        async def pick() -> str:
            picked = await self.turn.pick(capability, exclude=former)
            return picked.address if isinstance(picked, AgentHandle) else await self._newcomer(capability, own, former)

        # of those that have failed already nobody is waited for again
        return await (pick() if former else self._patiently(pick))

    async def _newcomer(self, capability: str, own: str, former: Sequence[str]) -> str:
        """Return an agent of a type that offers the capability and of which none has worked yet; "" for a pool.

        Raises:
            NoAgentError: If all of them have failed already.
        """
        slots = {each.type: each.slots for each in (await self.turn.find(capability)).workers if each.type}
        if not slots:
            return ""
        # as tasks of the capability spread over them; after one that has failed another type's, where there is one
        first = zlib.crc32(own.encode())
        places = range(max(slots.values()))
        known = [f"{kind}/{capability}-{1 + (first + n) % slots[kind]}" for n in places for kind in sorted(slots)]
        found = next((address for address in known if address not in former), None)
        if found is None:
            message = f"nobody else offers {capability!r}: {', '.join(former)} gave no result"
            raise NoAgentError(message)
        return found

    async def _answer(self, begun: AgentRun, branch: Branch) -> AgentRun:
        began_s = self.clock.monotonic()
        took_s = -1.0
        try:
            value = await self._patiently(lambda: self._ask(begun, branch))
            took_s = self.clock.monotonic() - began_s
        except (AskTimeoutError, TaskTimeoutError, DeadlineError, NoHostError) as error:
            # nobody hosts it any more: whether it had the question is not known
            found = replace(begun, status="lost", error=_text(error))
        except AskFailedError as error:
            is_late = error.cause_code == DeadlineError.code
            found = replace(begun, status="lost" if is_late else "failed", error=f"{error.cause_code}: {error}")
        except CallboardError as error:
            if isinstance(error, (BusError, TurnFencedError)):
                raise
            found = replace(begun, status="failed", error=_text(error))
        else:
            result = result_of(value)
            found = replace(begun, status="done" if result.is_done else "failed", result=result)
            if not result.is_done:
                found = replace(found, error=f"{result.status}: {result.reason}")
        if begun.capability and begun.agent:
            await self._served(begun.agent, took_s)
        return replace(found, input=None, ended_at=self.clock.now())

    async def _ask(self, begun: AgentRun, branch: Branch) -> object:
        left_s = ((begun.until or self.clock.now()) - self.clock.now()).total_seconds()
        if left_s <= 0:
            text = f"no time is left to ask {begun.agent or begun.capability}"
            raise DeadlineError(text)
        message = self._message(begun, branch)
        if not begun.agent:
            value = message if branch.value is not UNSET else UNSET
            return await self.turn.call(begun.capability, value, timeout_s=left_s, key=begun.ask)
        try:
            return await self.turn.ask(begun.agent, message, timeout_s=left_s, idempotency_key=begun.ask)
        except ReplyGoneError:
            # it answered while nobody ran us, and many others since: the work is done again, which beats none
            return await self.turn.ask(begun.agent, message, timeout_s=left_s, idempotency_key=again(begun.ask))

    async def _served(self, agent: str, took_s: float) -> None:
        """Tell the registry how long a picked agent took, or that it failed; a loss harms nobody."""
        with contextlib.suppress(BusError):
            await self.turn.bus.publish(SERVED, codec.encode(Served(address=agent, s=took_s)))

    def _message(self, begun: AgentRun, branch: Branch) -> object:
        value = Task(branch.value) if isinstance(branch.value, str) and begun.agent else branch.value
        if not isinstance(value, Task):
            return {} if value is UNSET else value
        budgets = tuple(dict.fromkeys((*self.inherited.budgets, *value.budgets)))
        context = {**value.context, **branch.context}
        return replace(value, context=context, run=self.inherited.run, agent_run=begun.name, budgets=budgets)

    # --- time

    def _until(self, timeout_s: float | None) -> datetime:
        limits = [self.inherited.deadline, self.clock.now() + timedelta(seconds=timeout_s or AGENT_S)]
        if self.scope.until is not None:
            limits.append(self.scope.until)
        return min(limits)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call, and again while nobody is there to be asked, for as long as the flow's patience lasts."""
        give_up_s = self.clock.monotonic() + self.inherited.patience_s
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                return await call()
            except _AWAY:
                if self.clock.monotonic() + pause_s > give_up_s:
                    raise
            await self.clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


class _Choice:
    """The choice of who is asked; ``make`` is the function of its step."""

    def __init__(self, part: str, branch: Branch, choose: Callable[[], Awaitable[AgentRun]]) -> None:
        self._part = part
        self._branch = branch
        self._choose = choose

    async def make(self) -> AgentRun:
        return await self._choose()

    def asked(self) -> object:
        """Return what is asked: for people who compare two runs."""
        return asked(self._part, _plain(self._branch.value))


def asked(part: str, value: object) -> dict[str, object]:
    """Return what a part of a run is asked, in the form in which two runs are compared."""
    return {"part": part, "input": value}


def result_of(value: object) -> AgentResult:
    """Return an answer as an agent's result: an agent's own, a run's, or anything else as the output of one."""
    if isinstance(value, dict):
        try:
            if value.get("status") in get_args(Status) and "run" not in value:
                return msgspec.convert(value, AgentResult)
            if "run" in value and "status" in value:
                return _of_run(msgspec.convert(value, RunResult))
        except msgspec.ValidationError:
            # it only looks like one
            pass
    return AgentResult(status="done", output=value, text=value if isinstance(value, str) else "")


def cut(part: AgentRun) -> AgentRun:
    """Return a record with long texts cut, as it is kept with the run for good."""
    result = part.result
    if result is not None:
        result = replace(result, text=result.text[:CUT], output=_short(result.output))
    return replace(part, input=_short(part.input), result=result, error=part.error[:CUT])


def _of_run(found: RunResult) -> AgentResult:
    statuses: dict[str, Status] = {"done": "done", "partial": "done", "cancelled": "stopped"}
    text = found.output if isinstance(found.output, str) else ""
    reason = found.error or (f"without {', '.join(found.missing)}" if found.missing else "")
    return AgentResult(
        status=statuses.get(found.status, "failed"),
        text=text,
        output=found.output,
        reason=reason,
        usage=found.usage,
        cost_usd=found.cost_usd,
    )


def _short(value: Any) -> Any:  # noqa: ANN401 - plain JSON
    if isinstance(value, str):
        return value[:CUT]
    text = codec.encode(value).decode()
    return value if len(text) <= CUT else text[:CUT]


def _capability(branch: Branch) -> str:
    if isinstance(branch.to, Capability):
        return branch.to.name
    return branch.to if isinstance(branch.to, str) and "/" not in branch.to else ""


def _has_second(branch: Branch, found: AgentRun, *, until: datetime, now: datetime) -> bool:
    is_final = found.result is not None and found.result.status in _FINAL
    return bool(_capability(branch) and found.agent) and not is_final and until > now


def _failed(part: str, failed: Sequence[AgentRun]) -> AgentFailedError:
    tried = "; ".join(f"{each.agent or each.capability or 'nobody'}: {each.error}" for each in failed)
    is_lost = all(each.status == "lost" for each in failed)
    message = f"{part!r} gave no result: {tried}"
    return AgentFailedError(message, part=part, is_lost=is_lost)


def _text(error: CallboardError) -> str:
    return f"{error.code}: {error}"


def _plain(value: object) -> object:
    return None if value is UNSET else msgspec.json.decode(codec.encode(value))
