"""``@flow``: a plain async function becomes a durable run, an actor ``run-<name>`` whose key is the run's id."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from types import FunctionType, new_class
from typing import Any, ClassVar, NoReturn, TypeVar, cast, get_type_hints, overload

import msgspec
from msgspec.structs import replace

from callboard.agents import approval
from callboard.agents.asking import Asking, Inherited, Journaled, cut
from callboard.agents.budget import Budget
from callboard.agents.message import Task
from callboard.agents.run import Run
from callboard.agents.run_log import marked
from callboard.agents.run_record import (
    BEGUN,
    PREFIX,
    AgentRun,
    Begun,
    RunResult,
    RunState,
    RunStatus,
    is_run,
    run_name,
    spent,
)
from callboard.agents.stopper import STOPPER, Stopper, StopRun
from callboard.runtime import codec
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.errors import ActorDefinitionError, DeadlineError
from callboard.runtime.outcome import Retry
from callboard.runtime.record import Failure, failure_of

Function = Callable[[Run, Any], Awaitable[Any]]
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

DAY_S = 86_400.0
PATIENCE_S = 5.0
# Kept back of a run's time, so that a join whose time is over can still be made into a result.
MARGIN_SHARE, MARGIN_MAX_S = 0.1, 2.0
KEPT_BYTES = 4 << 20
STATE_BYTES = 16 << 20
# The run, and its job.
_PARAMETERS = 2
# Stops after which another host goes on with the turn.
_MOVES = frozenset({"drain", "lost"})


class Flow(Actor, abstract=True, state_limit_bytes=STATE_BYTES):
    """Base of what ``@flow`` makes. One turn is one attempt at a run; what it comes to stands in its state for good.

    Attributes:
        function: The flow's function.
        timeout_s: Longest time of an attempt, in seconds.
        patience_s: How long it is looked for an agent, or for a host, that is not there, in seconds.
    """

    State: ClassVar[Any] = RunState
    companions: ClassVar[Sequence[type[Actor]]] = (Stopper, *approval.COMPANIONS, Budget)
    function: ClassVar[Function]
    timeout_s: ClassVar[float] = DAY_S
    patience_s: ClassVar[float] = PATIENCE_S

    async def attempt_at(self, job: object) -> RunResult:
        """Run the function, or return what stands when the run is done already."""
        state: RunState = self.state
        if state.result is not None and state.result.status == "done":
            return state.result
        begun: Begun = await self.step(BEGUN, self._begin, key=BEGUN)
        asking = Asking(cast("Journaled", current_turn()), begun, state, self._inherited(begun, job))
        run = Run(asking, id=self.key, attempt=begun.attempt)
        result = await self._see(run, job, asking, begun)
        self._finish(begun, asking, result)
        return result

    # --- inside

    def _begin(self) -> Begun:
        mail, now = self.mail, current_turn().clock.now()
        end = now + timedelta(seconds=self.timeout_s)
        parents = self._ancestors()
        return Begun(
            run=run_name(self.address),
            attempt=self.state.attempt + 1,
            job=codec.decoder(Any)(mail.data, mail.content_type) if mail.data else None,
            type=mail.type or "",
            parent=parents[-1] if parents else "",
            began_at=now,
            deadline=end if mail.deadline is None else min(end, mail.deadline),
        )

    def _ancestors(self) -> list[str]:
        """Return the runs that led to this one, the first one first."""
        return list(dict.fromkeys(run_name(link.address) for link in self.mail.chain if is_run(link.address)))

    def _inherited(self, begun: Begun, job: object) -> Inherited:
        scopes = [f"run/{begun.run}", *(f"run/{name}" for name in reversed(self._ancestors()))]
        if isinstance(job, Task):
            scopes += job.budgets
        clock = current_turn().clock
        began_at = begun.began_at or clock.now()
        deadline = begun.deadline or began_at + timedelta(seconds=self.timeout_s)
        margin_s = min(MARGIN_MAX_S, MARGIN_SHARE * (deadline - began_at).total_seconds())
        return Inherited(
            run=begun.run,
            budgets=tuple(dict.fromkeys(scopes)),
            deadline=deadline - timedelta(seconds=max(0.0, margin_s)),
            patience_s=self.patience_s,
        )

    async def _see(self, run: Run, job: object, asking: Asking, begun: Begun) -> RunResult:
        """Run the function and return what it came to.

        Raises:
            BaseException: What is to be tried again here, or goes on elsewhere.
        """
        clock = current_turn().clock
        left_s = ((begun.deadline or clock.now()) - clock.now()).total_seconds()
        work = asyncio.ensure_future(type(self).function(run, job))
        try:
            _ = await asyncio.wait([work], timeout=max(0.0, left_s))
        except asyncio.CancelledError:
            stop = current_turn().stop
            await _ended(work)
            if stop is None or stop[0] in _MOVES:
                raise
            status: RunStatus = "cancelled" if stop[0] == "cancel" else "failed"
            code = "turn_cancelled" if stop[0] == "cancel" else DeadlineError.code
            return _result(run, asking, status, failure=Failure(code=code, message=stop[1]))
        if not work.done():
            await _ended(work)
            text = f"the run was stopped at its deadline, {begun.deadline}; give it more time, or its joins less"
            return _result(run, asking, "failed", failure=Failure(code=DeadlineError.code, message=text))
        error = None if work.cancelled() else work.exception()
        if error is not None or work.cancelled():
            return _result(run, asking, "failed", failure=self._failure(error or asyncio.CancelledError()))
        return _result(run, asking, "partial" if asking.missing else "done", output=work.result())

    def _failure(self, error: BaseException) -> Failure:
        """Return the failure that an error is for good.

        Raises:
            BaseException: The error, when it is to be tried again or is no error but a stop.
        """
        if not isinstance(error, Exception):
            raise error
        decision = self.actor_options.retry.decide(error, self.attempt)
        if isinstance(decision, Retry):
            raise error
        return failure_of(error)

    def _finish(self, begun: Begun, asking: Asking, result: RunResult) -> None:
        state: RunState = self.state
        parts = list(asking.parts.values())
        state.attempt = begun.attempt
        state.begun = begun
        state.result = result
        state.ended_at = current_turn().clock.now()
        state.joins = asking.outcomes
        state.agents = [cut(_closed(part, result)) for part in marked(parts, state.joins)]
        state.kept = {} if result.status == "done" else _fitting(asking.kept)
        if result.status != "done" or any(part.status == "running" for part in parts):
            reason = result.error or "the run has ended"
            self.tell(f"{STOPPER}/{begun.run}", StopRun(begun.run, reason, seq=self.mail.seq))


@overload
def flow(function: F, /) -> type[Flow]: ...


@overload
def flow(
    *,
    name: str = ...,
    timeout_s: float = ...,
    patience_s: float = ...,
    **options: Any,  # noqa: ANN401 - as in a class statement
) -> Callable[[F], type[Flow]]: ...


def flow(
    function: F | None = None,
    /,
    *,
    name: str = "",
    timeout_s: float = DAY_S,
    patience_s: float = PATIENCE_S,
    **options: Any,
) -> type[Flow] | Callable[[F], type[Flow]]:
    """Make an async function of a ``Run`` and a job a flow: a class of actors that a worker hosts like any other.

    The job's annotation is the message that starts a run; ``Any`` or ``dict`` take any JSON. The function's value is
    the run's output. It may run again from its start: what it awaits of the ``Run`` is journaled.

    Args:
        function: Given by ``@flow`` without parentheses.
        name: Name of the flow; default: the function's, with ``-`` for ``_``. The actor type is ``run-<name>``.
        timeout_s: Longest time of an attempt, in seconds; the sender's ``Cb-Deadline`` may say less.
        patience_s: How long it is looked for an agent or a host that is not there, in seconds.
        options: Of the actor class, such as ``retry``: errors of the function itself are tried again by it.

    Raises:
        ActorDefinitionError: If it is no such function.
    """
    if function is None:
        return lambda given: _made(given, name, timeout_s, patience_s, options)
    return _made(function, name, timeout_s, patience_s, options)


def _made(function: Any, name: str, timeout_s: float, patience_s: float, options: dict[str, Any]) -> type[Flow]:  # noqa: ANN401 - whatever the decorator stands above
    if not isinstance(function, FunctionType) or not inspect.iscoroutinefunction(function):
        _refuse(function, "is no async function: write `async def digest(run: Run, job: Job) -> Out`")
    if timeout_s <= 0 or patience_s < 0:
        _refuse(function, f"timeout_s is {timeout_s:g} and patience_s {patience_s:g}: take seconds above 0")
    parameters = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(parameters) != len(inspect.signature(function).parameters) or len(parameters) != _PARAMETERS:
        _refuse(function, "takes two parameters, the run and its job: `async def digest(run: Run, job: Job) -> Out`")
    if parameters[1].annotation is inspect.Parameter.empty:
        _refuse(function, f"does not say what a job is: annotate {parameters[1].name}, such as `: Job` or `: dict`")

    async def start(self: Flow, job: object) -> RunResult:
        return await self.attempt_at(job)

    kind = _job_type(function, parameters[1].name)
    if isinstance(kind, str):
        # the runtime resolves it later, where the function stands
        start = functools.wraps(function)(start)
    else:
        start.__annotations__ = {"job": kind, "return": RunResult}
    label = name or function.__name__.replace("_", "-").lower()
    body = {
        "start": on(start),
        "function": staticmethod(function),
        "timeout_s": timeout_s,
        "patience_s": patience_s,
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "__qualname__": function.__qualname__,
    }
    given = {"name": f"{PREFIX}{label}", **options}
    return cast("type[Flow]", new_class(function.__name__, (Flow,), given, lambda space: space.update(body)))


def _job_type(function: FunctionType, parameter: str) -> Any:  # noqa: ANN401 - an annotation
    """Return what a job is: the annotation as a type where its names exist by now, locals around it included."""
    frame = sys._getframe(2)  # noqa: SLF001 - whoever wrote the decorator
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    try:
        return get_type_hints(function, localns=dict(frame.f_locals), include_extras=True)[parameter]
    except NameError:
        return function.__annotations__[parameter]


def _refuse(function: object, why: str) -> NoReturn:
    message = f"flow {getattr(function, '__qualname__', repr(function))} {why}"
    raise ActorDefinitionError(message)


async def _ended(work: asyncio.Future[Any]) -> None:
    """Cancel it and wait for its end, however often the turn itself is cancelled meanwhile."""
    _ = work.cancel()
    while not work.done():
        try:
            _ = await asyncio.wait([work])
        except asyncio.CancelledError:
            _ = work.cancel()
    if not work.cancelled():
        # seen: it is no business of the loop's
        _ = work.exception()


def _result(
    run: Run, asking: Asking, status: RunStatus, *, output: object = None, failure: Failure | None = None
) -> RunResult:
    usage, cost = spent(asking.parts.values())
    return RunResult(
        run=run.name,
        status=status,
        output=msgspec.json.decode(codec.encode(output)),
        missing=list(dict.fromkeys(asking.missing)),
        error=failure.message if failure is not None else "",
        code=failure.code if failure is not None else "",
        usage=usage,
        cost_usd=cost,
    )


def _closed(part: AgentRun, result: RunResult) -> AgentRun:
    if part.status != "running":
        return part
    status = "cancelled" if result.status == "cancelled" else "lost"
    return replace(part, status=status, error=result.error or part.error)


def _fitting(kept: dict[str, Any]) -> dict[str, Any]:
    """Return the results that a further attempt begins with, as many as fit; the others are made again."""
    found: dict[str, Any] = {}
    room = KEPT_BYTES
    for place, value in kept.items():
        size = len(codec.encode(value))
        if size <= room:
            found[place] = value
            room -= size
    return found
