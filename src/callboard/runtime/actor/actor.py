"""The class that users write: ``Actor``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, ClassVar, TypeVar, overload

from msgspec import UNSET, UnsetType

from callboard.runtime.actor import handler, options
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.address import of as _address
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.migration import collect as collect_migrations
from callboard.runtime.actor.options import ActorOptions, MailboxPolicy
from callboard.runtime.actor.recovery import Recovery
from callboard.runtime.actor.residence import Residence
from callboard.runtime.actor.turn_api import TurnApi, TurnRef, Where, turn_now
from callboard.runtime.capability import Capability
from callboard.runtime.errors import ActorDefinitionError, ActorError
from callboard.runtime.registry.handle import Picks
from callboard.runtime.registry.message import Found
from callboard.runtime.retry import RetryPolicy

__all__ = ["Actor", "TurnApi", "turn_scope"]

T = TypeVar("T")
M = TypeVar("M")


class Actor:
    """Base of all actors: a class with handlers (``@on``, ``@every``) and, if it keeps anything, a ``State``.

    One object serves one address, one message at a time. ``self.state`` is stored by each turn's commit and is the
    same on whichever host the actor runs next; other attributes live as long as the object, which may go after each
    turn. Every method below the hooks belongs to a turn and raises ``ActorError`` outside of one.

    The class statement takes ``name`` (default: the class's name in small letters), ``abstract=True`` for a base that
    is not hosted itself, and the fields of ``ActorOptions``, which a subclass inherits.

    Attributes:
        State: Class of the state; optional. A Struct, dataclass, TypedDict or pydantic model whose fields all have
            defaults.
        state: The state, None without a ``State``.
        companions: Further classes that its actors cannot do without: a worker that hosts this one hosts them too, each
            once, unless its option ``hosts_companions`` says that others do.
    """

    State: ClassVar[Any] = None
    state: Any
    companions: ClassVar[Sequence[type[Actor]]] = ()

    actor_name: ClassVar[str] = ""
    actor_options: ClassVar[ActorOptions] = ActorOptions()
    is_abstract: ClassVar[bool] = True

    _address: Address
    _turn: TurnApi | None = None
    _residence: Residence | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        capabilities: Sequence[str | Capability[..., Any]] | UnsetType = UNSET,
        labels: Mapping[str, str] | UnsetType = UNSET,
        weight: int | UnsetType = UNSET,
        residents: Sequence[str] | UnsetType = UNSET,
        version: int | UnsetType = UNSET,
        idle_s: float | UnsetType | None = UNSET,
        retry: RetryPolicy | UnsetType | None = UNSET,
        turn_timeout_s: float | UnsetType | None = UNSET,
        mailbox_cap: int | UnsetType | None = UNSET,
        mailbox_policy: MailboxPolicy | UnsetType = UNSET,
        restart_budget: int | UnsetType = UNSET,
        restart_window_s: float | UnsetType = UNSET,
        poison_limit: int | UnsetType = UNSET,
        state_limit_bytes: int | UnsetType | None = UNSET,
        max_chain: int | UnsetType = UNSET,
        recovery: Recovery | UnsetType = UNSET,
        supervisor: str | Address | UnsetType | None = UNSET,
        abstract: bool = False,
        **others: Any,  # noqa: ANN401 - whatever a mixin takes
    ) -> None:
        given = {
            "capabilities": capabilities,
            "labels": labels,
            "weight": weight,
            "residents": residents,
            "version": version,
            "idle_s": idle_s,
            "retry": RetryPolicy() if retry is None else retry,
            "turn_timeout_s": turn_timeout_s,
            "mailbox_cap": mailbox_cap,
            "mailbox_policy": mailbox_policy,
            "restart_budget": restart_budget,
            "restart_window_s": restart_window_s,
            "poison_limit": poison_limit,
            "state_limit_bytes": state_limit_bytes,
            "max_chain": max_chain,
            "recovery": recovery,
            "supervisor": supervisor,
        }
        _check_keywords(cls, others, given)
        super().__init_subclass__(**others)
        stated = {key: value for key, value in given.items() if value is not UNSET}
        cls.is_abstract = abstract
        cls.actor_name = options.type_name(cls, name) if name is not None or not abstract else ""
        cls.actor_options = options.checked(cls, stated, base=cls.actor_options)
        _check_class(cls)

    # --- hooks: plain or asynchronous, all optional

    def on_start(self) -> Awaitable[None] | None:
        """Run when the object was made and its state loaded, before its first turn; may run often, on any host.

        ``self.state`` may be read; changes are stored only by the commit of a turn. An error counts as a failed start.
        """

    def on_stop(self) -> Awaitable[None] | None:
        """Run before the object is forgotten in good order: idle, drained, handed over. A crash runs nothing."""

    def on_pause(self) -> Awaitable[None] | None:
        """Run when a person paused the actor, after its running turn."""

    def on_resume(self) -> Awaitable[None] | None:
        """Run when a person let it go on."""

    def on_drain(self) -> Awaitable[None] | None:
        """Run when the worker begins to drain while a turn runs, beside that turn, which may be told to be brief."""

    def on_failure(self, error: BaseException) -> Awaitable[None] | None:
        """Run when a turn has failed for good, before its mail becomes a dead letter. An error in here is logged."""

    def on_health(self) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        """Return facts about its health for people who look; plain values."""
        return {}

    @property
    def residence(self) -> Residence:
        """Where a resident actor lives: connection, clock and client of its worker. From ``on_start`` to ``on_stop``.

        Raises:
            ActorError: If it is no resident; see ``ActorOptions.residents``.
        """
        if self._residence is None:
            message = f"{type(self).__name__} is no resident here: name its key in residents=[...]"
            raise ActorError(message)
        return self._residence

    # --- during a turn; ``TurnApi`` has the whole contract of each

    @property
    def address(self) -> Address:
        """Who this is; also outside a turn."""
        return self._address

    @property
    def key(self) -> str:
        """The key of its address; also outside a turn."""
        return self._address.key

    @property
    def mail(self) -> Mail:
        """The mail that this turn handles, with raw payload (``mail.data``) and headers."""
        return self._running("mail").mail

    @property
    def attempt(self) -> int:
        """Number of this run of the turn in this host, 1-based; a host that takes it over counts from 1 again."""
        return self._running("attempt").attempt

    @property
    def deadline(self) -> datetime | None:
        """When the answer stops being wanted, or None."""
        return self._running("deadline").deadline

    @property
    def epoch(self) -> int:
        """The ownership under which this turn runs; a fencing token for outside effects."""
        return self._running("epoch").epoch

    @property
    def is_stopping(self) -> bool:
        """Whether the worker drains: a long turn does well to come to an end, or to its next step, soon."""
        return self._running("is_stopping").is_stopping

    def idempotency_key(self, step_name: str) -> str:
        """Return a key for an outside effect: the same in every run of this turn."""
        return self._running("idempotency_key").idempotency_key(step_name)

    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: object,
        key: str | None = ...,
        once: bool = ...,
        retry: RetryPolicy | None = ...,
        **kwargs: object,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., T],
        /,
        *args: object,
        key: str | None = ...,
        once: bool = ...,
        retry: RetryPolicy | None = ...,
        **kwargs: object,
    ) -> Coroutine[Any, Any, T]: ...

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
        """Run a function once and record its value; a later run of the turn, here or elsewhere, gets that value.

        Await it. Of identical steps the order of the calls counts, not that of the awaits.
        """
        # no coroutine of our own around it: the step takes its place by the call
        return self._running("step").step(name, fn, *args, key=key, once=once, retry=retry, **kwargs)

    def gather(self, *aws: Awaitable[T]) -> Coroutine[Any, Any, list[T]]:
        """Await several steps, asks or calls at a time; their values in order."""
        return self._running("gather", *aws).gather(*aws)

    def call(
        self,
        capability: str | Capability[..., Any],
        value: object = UNSET,
        *,
        timeout_s: float | None = None,
        key: str | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Have a worker pool run a capability and return its result, journaled."""
        return self._running("call").call(capability, value, timeout_s=timeout_s, key=key)

    def ask(
        self,
        to: str | Address,
        message: object,
        *,
        timeout_s: float = 30.0,
        idempotency_key: str | None = None,
        recorded: bool = True,
    ) -> Coroutine[Any, Any, Any]:
        """Send a message to another actor at once and return its answer, journaled unless ``recorded`` is False."""
        turn = self._running("ask")
        return turn.ask(to, message, timeout_s=timeout_s, idempotency_key=idempotency_key, recorded=recorded)

    async def find(self, capability: str | Capability[..., Any] = "", **what: Any) -> Found:  # noqa: ANN401 - a query
        """Return agents as the registry sees them now; see ``Client.find``. Not journaled: a later run sees others."""
        return await self._running("find").find(capability, **what)

    def pick(
        self,
        capability: str | Capability[..., Any] = "",
        **what: Any,  # noqa: ANN401 - a query
    ) -> Coroutine[Any, Any, Picks]:
        """Choose the least busy agent that fits, journaled; then ``await agent.ask(...)``. See ``Client.pick``."""
        return self._running("pick").pick(capability, **what)

    def stream(self, to: str | Address, message: object, *, timeout_s: float = 30.0) -> AsyncIterator[Any]:
        """Send a message to another actor and iterate over the parts of its answer."""
        return self._running("stream").stream(to, message, timeout_s=timeout_s)

    def tell(self, to: str | Address, message: object, *, delay_s: float | None = None) -> None:
        """Send a message with this turn's commit, or after ``delay_s`` seconds; there is no answer."""
        self._running("tell").tell(to, message, delay_s=delay_s)

    def remind(
        self,
        name: str,
        message: object,
        *,
        delay_s: float | None = None,
        at: datetime | None = None,
        every: str | float | timedelta | None = None,
    ) -> None:
        """Set a timer, with this turn's commit, that mails a message to this actor; it replaces one of that name."""
        self._running("remind").remind(name, message, delay_s=delay_s, at=at, every=every)

    def cancel_timer(self, name: str) -> None:
        """Remove a timer with this turn's commit."""
        self._running("cancel_timer").cancel_timer(name)

    def emit(self, name: str, data: object = None) -> None:
        """Publish an event of this actor with this turn's commit."""
        self._running("emit").emit(name, data)

    @overload
    def wait_for(
        self, kind: type[M], *, timeout: str | float | None = ..., where: Where | None = ..., hold: bool = ...
    ) -> Coroutine[Any, Any, M]: ...

    @overload
    def wait_for(
        self, kind: str, *, timeout: str | float | None = ..., where: Where | None = ..., hold: bool = ...
    ) -> Coroutine[Any, Any, Any]: ...

    def wait_for(
        self,
        kind: type[Any] | str,
        *,
        timeout: str | float | None = None,
        where: Where | None = None,
        hold: bool = False,
    ) -> Coroutine[Any, Any, Any]:
        """Park this turn until a message of ``kind`` comes, for minutes or months, holding nothing meanwhile."""
        return self._running("wait_for").wait_for(kind, timeout=timeout, where=where, hold=hold)

    def progress(self, percent: float | None = None, *, stage: str | None = None, text: str | None = None) -> bool:
        """Tell watchers how far this turn is; not stored."""
        return self._running("progress").progress(percent, stage=stage, text=text)

    def ref(self, to: str | Address) -> TurnRef:
        """Return another actor, ``type/key``, to tell and ask during this turn.

        Raises:
            InvalidNameError: If the address cannot be used.
        """
        return TurnRef(self._running("ref"), _address(to))

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Return what an awaitable gives, from a synchronous handler: ``self.wait(self.step("pay", pay, order))``.

        The turn's loop runs it while this thread waits.

        Raises:
            ActorError: In an asynchronous handler, which has ``await``.
        """
        self._running("wait", awaitable)
        loop = self._loop
        if loop is None or _running_loop() is loop:
            _close(awaitable)
            message = f"{type(self).__name__}.wait() is for synchronous handlers: write await here"
            raise ActorError(message)

        async def run() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), loop).result()

    def _running(self, word: str, *given: object) -> TurnApi:
        # the context first: read-only turns run beside others on one object
        turn = turn_now.get()
        if turn is None or turn.address != self._address:
            turn = self._turn
        if turn is None:
            _close(*given)
            message = (
                f"{type(self).__name__}.{word} belongs to a turn and none runs: use it inside a method with @on or "
                f"@every, while a worker hosts the actor; from outside, use a Client"
            )
            raise ActorError(message)
        return turn


class turn_scope:  # noqa: N801 - used as a function is
    """Let an actor's methods, and ``current_turn()``, act on ``turn`` inside the block; enter it on the loop.

    Tasks and threads that a handler starts in it keep the turn after the block: a turn refuses what comes too late.
    """

    __slots__ = ("_actor", "_token", "_turn")

    def __init__(self, actor: Actor, turn: TurnApi) -> None:
        """Prepare."""
        self._actor = actor
        self._turn = turn

    def __enter__(self) -> None:
        """Begin."""
        self._actor._loop = asyncio.get_running_loop()  # noqa: SLF001 - the engine's side of this class
        self._token = turn_now.set(self._turn)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        turn_now.reset(self._token)


_HOOKS = frozenset({"on_start", "on_stop", "on_pause", "on_resume", "on_drain", "on_failure", "on_health"})
_OWN = frozenset(name for name in vars(Actor) if not name.startswith("__")) | {"state"}


def _check_keywords(cls: type, others: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a misspelt keyword in words; a mixin that takes keywords has an ``__init_subclass__`` of its own."""
    has_taker = any("__init_subclass__" in vars(base) for base in cls.__mro__[1:] if base not in (Actor, object))
    if others and not has_taker:
        message = (
            f"actor {cls.__qualname__} has no option {', '.join(sorted(others))}: "
            f"there are {', '.join(['name', 'abstract', *known])}"
        )
        raise ActorDefinitionError(message)


def _check_class(cls: type[Actor]) -> None:
    """Find at once what is wrong with a class and can be known before its annotations can all be resolved."""
    hidden = sorted(name for name, value in vars(cls).items() if name in _OWN and handler.is_marked(value))
    if hidden:
        role = "a hook, which takes no message" if hidden[0] in _HOOKS else f"what turns call as self.{hidden[0]}"
        message = f"{cls.__qualname__}.{hidden[0]} cannot be a handler: the name belongs to {role}; rename the method"
        raise ActorDefinitionError(message)
    found = handler.collect(cls, _names_around())
    if not cls.is_abstract and not any(found):
        message = f"actor {cls.__qualname__} handles nothing: put @on above a method, or say abstract=True"
        raise ActorDefinitionError(message)
    collect_migrations(cls, version=cls.actor_options.version)


def _names_around() -> dict[str, object]:
    """Return the local names of the function that a class statement stands in; empty at the top of a module."""
    frame = inspect.currentframe()
    while frame is not None and (
        frame.f_globals.get("__name__") == __name__ or frame.f_code.co_name == "__init_subclass__"
    ):
        frame = frame.f_back
    found: dict[str, object] = {}
    # class bodies and functions around the statement, innermost last
    while frame is not None and frame.f_locals is not frame.f_globals:
        found = {**frame.f_locals, **found}
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            break
        frame = frame.f_back
    return found


def _close(*given: object) -> None:
    """Close coroutines that will not be awaited, so that only the error speaks of them."""
    for item in given:
        if inspect.iscoroutine(item):
            item.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
