"""What a flow's function works with: ``Run``. Its agents one by one, in a row, side by side, or as it turns out."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from callboard.agents import approval
from callboard.agents import join as joins
from callboard.agents.approval import Grant
from callboard.agents.asking import Asking, Scope, scope_now
from callboard.agents.branch import Branch, Choose, Joined, Next, Trail, Whom, as_branch
from callboard.agents.errors import AgentFailedError, FlowError
from callboard.agents.join import How
from callboard.agents.message import AgentResult, Task
from callboard.agents.run_record import JOINED, JOINING, Join, Outcome
from callboard.agents.stopper import cancel
from callboard.runtime import codec
from callboard.runtime.actor import address as addresses
from callboard.runtime.actor import function, step
from callboard.runtime.capability import Capability
from callboard.runtime.errors import CallboardError, InputError
from callboard.runtime.retry import RetryPolicy

LIMIT = 10
_END = frozenset({"", "end", "done", "none"})

Reduce = Callable[[list[Any]], Any] | Branch | str


class Run:
    """One attempt at a run, as the flow's function sees it. Everything that it awaits here is journaled.

    The function may run again from its start, on another host, whenever its host dies: what is recorded returns at
    once, an agent that was asked is not asked anew. Agents that it asks inherit the trace, the deadline, the budgets
    and the end of the run.

    Attributes:
        name: ``<flow>/<id>``.
        id: The run's own id, the key of its actor.
        attempt: 1, and one more for each ``callboard runs retry``.
        deadline: When its result must stand, a little before its own.
    """

    def __init__(self, asking: Asking, *, id: str, attempt: int) -> None:  # noqa: A002 - the word of its users
        """Flows make these."""
        self.name = asking.inherited.run
        self.id = id
        self.attempt = attempt
        self.deadline: datetime = asking.inherited.deadline
        self._asking = asking
        self._turn = asking.turn

    # --- one agent

    async def agent(
        self,
        to: Whom | Branch,
        value: object = UNSET,
        *,
        name: str = "",
        context: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        is_optional: bool = False,
        tries: int = 2,
    ) -> AgentResult:
        """Ask one agent and return its result. Three stored writes, and the question's own.

        Args:
            to: Whom, as in ``Branch.to``; or a ``Branch``, which then says everything.
            value: What it is sent, as in ``Branch.value``.
            name: Name in the run's records.
            context: Added to the ``context`` of a ``Task``.
            timeout_s: Longest wait for one agent, in seconds; default: what the run has left, at most an hour.
            is_optional: Return a failed result in place of an error; the run ends as ``partial``.
            tries: Agents that are asked before it has failed; only a capability has a second one.

        Raises:
            AgentFailedError: If nobody gave a result and it is not optional.
            InputError: If ``to`` can be nobody.
        """
        if not isinstance(to, Branch):
            to = Branch(
                to,
                value,
                name=name,
                context=context or {},
                timeout_s=timeout_s,
                is_optional=is_optional,
                tries=tries,
            )
        branch = as_branch(to)
        part = self._asking.scope.name(branch.label)
        try:
            found = await self._work(part, branch)
        except AgentFailedError as error:
            if not branch.is_optional:
                raise
            self._asking.missing.append(part)
            return AgentResult(status="failed", reason=str(error))
        return found if isinstance(found, AgentResult) else AgentResult(status="done", output=found)

    # --- several

    async def sequence(self, agents: Sequence[Branch | Whom], value: str | Task) -> Joined:
        """Ask agents one after the other: each gets the task and, in its ``context["results"]``, what came before.

        Results stand there by name: an agent's output, or its text. An optional agent that fails is left out.

        Raises:
            AgentFailedError: If one that is not optional fails; those after it are not asked.
            InputError: If there are none.
        """
        branches = [as_branch(each, value) for each in agents]
        if not branches:
            message = "sequence: it has no agents: give at least one"
            raise InputError(message)
        results: dict[str, Any] = {}
        outcomes = []
        for branch in branches:
            part = self._asking.scope.name(branch.label)
            told = replace(branch, context={**branch.context, "results": _told(results)})
            outcome = await self._outcome(part, told, results)
            if outcome.status != "done" and not branch.is_optional:
                raise AgentFailedError(outcome.error, part=part, is_lost=outcome.status == "lost")
            outcomes.append(outcome)
        found = Joined(value=_last(results), results=results, outcomes=outcomes)
        self._asking.missing += found.missing
        return found

    async def parallel(
        self,
        branches: Sequence[Branch | Whom],
        value: object = UNSET,
        *,
        join: How = "collect",
        cap: int | None = None,
        quorum: int | None = None,
        deadline_s: float | None = None,
        key: Callable[[Any], object] | None = None,
        into: Reduce | None = None,
        name: str = "join",
    ) -> Joined:
        """Let branches work side by side and wait for them: durably, and never for ever.

        What is waited for, and until when, is recorded before the first branch begins; how each ended, when the join
        ends. A branch that gives no answer in time is lost and leaves the result partial; one that fails ends the join,
        unless it is optional or a quorum is named that is still in reach. Whoever is not waited for any more is
        cancelled. Two stored writes beside those of the branches.

        Args:
            branches: Whom to ask, or code of the flow's own.
            value: What those are sent that name no value of their own.
            join: ``collect``: the results, in order. ``vote``: the one that most came to. ``first``: the first one,
                the others are cancelled. ``reduce``: what ``into`` makes of them.
            cap: How many work at a time; default: all.
            quorum: How many must be done; default: all that are not optional, or, when some were lost, one.
            deadline_s: Longest wait, in seconds; default: what the run has left.
            key: Of a vote: what of a result counts; default: an agent's output, else its text.
            into: Of a reduce: a function of the list of results, or an agent who gets them in ``context["results"]``
                with ``value`` as its task.
            name: Name of the join in the run's records.

        Raises:
            FlowError: If a branch failed that was needed, or the quorum is out of reach.
            InputError: If it cannot be meant: no branches, a quorum larger than their number, a deadline in the past.
        """
        todo = [as_branch(each, value) for each in branches]
        named = [each.name for each in todo if each.name]
        joins.check(len(todo), names=named, how=join, quorum=quorum, cap=cap, deadline_s=deadline_s)
        if join == "reduce" and into is None:
            message = "parallel: join='reduce' needs into=, a function of the list of results or an agent"
            raise InputError(message)
        scope = self._asking.scope
        parts = {scope.name(each.label): each for each in todo}
        begun = await self._begin_join(scope.name(name), parts, join, quorum, deadline_s)
        results, outcomes = await self._joined(begun, parts, cap)
        self._asking.outcomes[begun.name] = outcomes
        found = Joined(value=list(results.values()), results=results, outcomes=outcomes)
        if join != "first":
            self._asking.missing += found.missing
        match join:
            case "vote":
                winner, votes = joins.vote(results, key)
                return replace(found, value=winner, votes=votes)
            case "first":
                return replace(found, value=next(iter(results.values())))
            case "reduce":
                return replace(found, value=await self._reduced(into, results, value))
        return found

    async def adaptive(
        self,
        task: str | Task,
        choose: Choose,
        *,
        limit: int = LIMIT,
        among: Sequence[str] = (),
    ) -> Joined:
        """Ask one agent after the other, each chosen by what came before; each gets the task and the earlier results.

        Args:
            task: The task, the same for all.
            choose: Who is next, None (or ``end``) for nobody. A mapping from the last one ("" at the beginning) to the
                next; a list of (predicate of the ``Trail``, next), of which the first that holds counts; a function of
                the ``Trail``; or a ``Branch``: an agent that is asked to name one of ``among``, or ``end``.
            limit: Agents at most.
            among: Who may be chosen; needed where an agent decides, checked wherever it is given.

        Raises:
            FlowError: If the limit is reached, or somebody is chosen who may not be.
            AgentFailedError: If an agent that is not optional fails.
        """
        if limit < 1:
            message = f"adaptive: limit is {limit}: take 1 or more agents"
            raise InputError(message)
        if isinstance(choose, Branch) and not among:
            message = "adaptive: name in among= whom the deciding agent may choose"
            raise InputError(message)
        given = task if isinstance(task, Task) else Task(task)
        results: dict[str, Any] = {}
        steps: list[str] = []
        outcomes: list[Outcome] = []
        while True:
            trail = Trail(task=given.text, results=dict(results), steps=tuple(steps))
            chosen = await self._next(choose, trail, among)
            if chosen is None:
                return Joined(value=_last(results), results=results, outcomes=outcomes)
            if len(steps) == limit:
                way = " -> ".join(steps)
                message = (
                    f"adaptive: {limit} agents were asked and {chosen.label!r} would be next ({way}): let the choice "
                    "end by None, or raise limit="
                )
                raise FlowError(message)
            part = self._asking.scope.name(chosen.label)
            told = replace(as_branch(chosen, given), context={**chosen.context, "results": _told(results)})
            outcome = await self._outcome(part, told, results)
            if outcome.status != "done" and not chosen.is_optional:
                raise AgentFailedError(outcome.error, part=part, is_lost=outcome.status == "lost")
            outcomes.append(outcome)
            steps.append(chosen.to if isinstance(chosen.to, str) else chosen.label)

    # --- the flow's own code

    def step(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: object,
        key: str | None = None,
        once: bool = False,
        retry: RetryPolicy | None = None,
        **kwargs: object,
    ) -> Coroutine[Any, Any, Any]:
        """Run a function once and record what it returned, as ``Actor.step`` does; a retried run has it too."""
        digest = step.digest(name, {"key": key} if key is not None else [args, kwargs])
        place = self._asking.scope.name(f"step {name} {digest}")
        if place in self._asking.kept:
            decode = function.reader(fn, None, step=name)
            data = codec.encode(self._asking.kept[place])
            return _value(function.read(decode, data, step=name))
        return self._keep(place, self._turn.step(name, fn, *args, key=key, once=once, retry=retry, **kwargs))

    def progress(self, percent: float | None = None, *, stage: str | None = None, text: str | None = None) -> bool:
        """Tell watchers how far the run is; not stored."""
        return self._turn.progress(percent, stage=stage, text=text)

    async def approve(self, payload: object, **how: Any) -> Grant:  # noqa: ANN401 - as approval.approve
        """Ask people whether ``payload`` may be done, and wait without holding anything. See ``approval.approve``.

        Raises:
            ApprovalDeniedError: If the answer was no.
            InputError: In a branch of ``parallel``: ask before it, or after.
        """
        self._check_alone("approve")
        return await approval.approve(self._turn, payload, **how)

    async def wait_for(self, kind: type[Any] | str, *, timeout: str | float | None = None) -> Any:  # noqa: ANN401, ASYNC109
        """Park the run until a message of ``kind`` comes to ``run-<flow>/<id>``, for minutes or months.

        Raises:
            InputError: In a branch of ``parallel``: wait before it, or after.
        """
        self._check_alone("wait_for")
        return await self._turn.wait_for(kind, timeout=timeout)

    # --- inside

    def _check_alone(self, word: str) -> None:
        """Refuse to park from within a join: what the branches beside wait for could be taken for one another's."""
        if self._asking.scope.is_beside:
            message = (
                f"{word} parks the whole run and cannot stand in a branch of parallel: move it before or behind it"
            )
            raise InputError(message)

    async def _work(self, part: str, branch: Branch) -> Any:  # noqa: ANN401 - what the flow's own code returns
        to = branch.to
        if isinstance(to, (str, Capability, type)):
            return await self._asking.ask(part, branch)
        around = self._asking.scope
        token = scope_now.set(Scope(f"{part}/", around.until, is_beside=around.is_beside))
        try:
            return await to()
        finally:
            scope_now.reset(token)

    async def _outcome(self, part: str, branch: Branch, results: dict[str, Any]) -> Outcome:
        """Return how a branch ended; its result goes into ``results``."""
        try:
            results[part] = await self._work(part, branch)
        except AgentFailedError as error:
            return Outcome(name=part, status="lost" if error.is_lost else "failed", error=str(error))
        except FlowError as error:
            return Outcome(name=part, status="failed", error=str(error))
        return Outcome(name=part, status="done")

    async def _begin_join(
        self, name: str, parts: Mapping[str, Branch], how: How, quorum: int | None, deadline_s: float | None
    ) -> Join:
        def begin() -> Join:
            limits = [self.deadline]
            if self._asking.scope.until is not None:
                limits.append(self._asking.scope.until)
            if deadline_s is not None:
                limits.append(self._asking.clock.now() + timedelta(seconds=deadline_s))
            return Join(
                name=name,
                expected=list(parts),
                optional=[part for part, branch in parts.items() if branch.is_optional],
                how=how,
                quorum=quorum,
                deadline=min(limits),
            )

        begun: Join = await self._turn.step(JOINING, begin, key=name)
        return begun

    async def _joined(
        self, join: Join, parts: Mapping[str, Branch], cap: int | None
    ) -> tuple[dict[str, Any], list[Outcome]]:
        """Wait for the branches; or, where the join has ended already, only fetch what those that are done came to."""
        recorded = await self._recorded(join)
        results: dict[str, Any] = {}
        if recorded is not None:
            parts = {each.name: parts[each.name] for each in recorded if each.status == "done" and each.name in parts}
        slots = asyncio.Semaphore(cap or len(join.expected))
        async with self._started(join, parts, slots, results) as tasks:
            if recorded is not None:
                _ = await asyncio.gather(*tasks)
                return _in_order(results, recorded), recorded
            found, is_late = await self._wait(join, tasks)
        outcomes = joins.settle(join, found, is_late=is_late)
        await self._end_unneeded(outcomes)
        stands = await self._record(join, outcomes)
        return _in_order(results, stands), stands

    @asynccontextmanager
    async def _started(
        self, join: Join, parts: Mapping[str, Branch], slots: asyncio.Semaphore, results: dict[str, Any]
    ) -> AsyncIterator[list[asyncio.Task[Outcome]]]:
        scope = Scope(self._asking.scope.prefix, join.deadline, is_beside=True)

        async def work(part: str, branch: Branch) -> Outcome:
            async with slots:
                _ = scope_now.set(scope)
                return await self._outcome(part, branch, results)

        tasks = [asyncio.create_task(work(part, branch), name=f"branch-{part}") for part, branch in parts.items()]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                done, _ = await asyncio.wait(tasks)
                # seen: of several errors the first one speaks
                _ = [task.exception() for task in done if not task.cancelled()]

    async def _wait(self, join: Join, tasks: Sequence[asyncio.Task[Outcome]]) -> tuple[dict[str, Outcome], bool]:
        """Return the branches that ended, and whether the deadline came first."""
        found: dict[str, Outcome] = {}
        pending = set(tasks)
        is_late = False
        while not joins.is_enough(join, found, is_late=is_late):
            left_s = ((join.deadline or self.deadline) - self._asking.clock.now()).total_seconds()
            done, pending = await asyncio.wait(pending, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
            is_late = not done and left_s <= 0
            # a task that a stop of the whole turn has cancelled raises here, and so does a mistake in the flow's code
            found |= {outcome.name: outcome for outcome in [task.result() for task in done]}
        return found, is_late

    async def _recorded(self, join: Join) -> list[Outcome] | None:
        """Return how the join ended, if an earlier run of the turn saw its end."""
        slot = await self._turn.journal.begin(JOINED, join.name)
        if not slot.is_recorded:
            self._turn.journal.give_back(slot)
            return None
        return _outcomes(slot.value)

    async def _record(self, join: Join, outcomes: list[Outcome]) -> list[Outcome]:
        with await self._turn.journal.begin(JOINED, join.name) as slot:
            if not slot.is_recorded:
                _ = await slot.record({"name": join.name, "outcomes": outcomes})
            return _outcomes(slot.value)

    async def _end_unneeded(self, outcomes: Sequence[Outcome]) -> None:
        """Cancel agents that nobody waits for any more, once; what stays is ended when the run is."""
        names = [each.name for each in outcomes if each.status in ("lost", "cancelled")]
        for part in self._asking.open_parts(names):
            if part.agent:
                _ = await cancel(self._turn.bus, addresses.parse(part.agent), "no longer needed", id=part.ask)

    async def _reduced(self, into: Reduce | None, results: dict[str, Any], value: object) -> Any:  # noqa: ANN401
        if isinstance(into, (str, Branch)):
            branch = as_branch(into, value)
            return await self.agent(replace(branch, context={**branch.context, "results": _told(results)}))
        found = into(list(results.values())) if into is not None else None
        return await found if inspect.isawaitable(found) else found

    async def _next(self, choose: Choose, trail: Trail, among: Sequence[str]) -> Branch | None:
        chosen = await self._chosen(choose, trail, among)
        if chosen is None or (isinstance(chosen, str) and chosen.strip().casefold() in _END):
            return None
        branch = as_branch(chosen)
        if among and (branch.to if isinstance(branch.to, str) else branch.label) not in among:
            message = f"adaptive: {branch.label!r} was chosen: take one of {', '.join(among)}, or end"
            raise FlowError(message)
        return branch

    async def _chosen(self, choose: Choose, trail: Trail, among: Sequence[str]) -> Next:
        if isinstance(choose, Branch):
            question = f"Who works on this next, or is it done? Answer with one of {', '.join(among)}, or end."
            context = {**choose.context, "task": trail.task, "results": _told(trail.results), "among": list(among)}
            asked = choose if choose.value is not UNSET else replace(choose, value=question)
            result = await self.agent(replace(asked, context=context))
            output = result.output if result.output is not None else result.text
            named = output.get("next") if isinstance(output, dict) else output
            return named.strip() if isinstance(named, str) else None
        if isinstance(choose, Mapping):
            return choose.get(trail.last_step)
        if isinstance(choose, Sequence):
            return next((to for holds, to in choose if holds(trail)), None)
        found = choose(trail)
        return await found if isinstance(found, Awaitable) else found

    async def _keep(self, place: str, running: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - a step's value
        value = await running
        self._asking.kept[place] = msgspec.json.decode(codec.encode(value))
        return value


async def _value(value: object) -> Any:  # noqa: ANN401 - a step's value
    return value


def _outcomes(value: object) -> list[Outcome]:
    if not isinstance(value, dict):
        message = "the record of a join has no outcomes"
        raise CallboardError(message)
    return msgspec.convert(value["outcomes"], list[Outcome])


def _in_order(results: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {each.name: results[each.name] for each in outcomes if each.status == "done" and each.name in results}


def _told(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the next agent is told of earlier results: outputs, else texts."""
    return {
        name: (found.output if found.output is not None else found.text) if isinstance(found, AgentResult) else found
        for name, found in results.items()
    }


def _last(results: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a branch came to
    return list(results.values())[-1] if results else None
