"""What a handler may do during its turn: the port between actors' classes and the engine that runs them."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

from msgspec import UNSET

from callboard.runtime.actor.address import Address
from callboard.runtime.actor.mail import Mail
from callboard.runtime.bus.base import Bus
from callboard.runtime.capability import Capability
from callboard.runtime.clock import Clock
from callboard.runtime.errors import ActorError
from callboard.runtime.registry.handle import Picks
from callboard.runtime.registry.message import Found
from callboard.runtime.retry import RetryPolicy

Where = Mapping[str, object]


class TurnApi(Protocol):
    """What a handler may do during its turn; ``self.step(...)`` and the rest of ``Actor`` come here.

    Nothing that a turn sends is on its way before its commit: mail, timers, events and the new state are stored in one
    atomic write. A turn that is taken over (its host died or was cut off) is run again from its start on another host:
    recorded steps return what they returned, and what was buffered is buffered again. The former host's commit is
    refused, so its buffered effects never happen. ``tell``, ``remind``, ``cancel_timer``, ``emit`` and ``progress`` may
    be called from the thread of a synchronous handler.
    """

    @property
    def address(self) -> Address:
        """Who this actor is."""
        ...

    @property
    def key(self) -> str:
        """The key of its address."""
        ...

    @property
    def mail(self) -> Mail:
        """The mail that this turn handles, its raw payload (``mail.data``) and headers included."""
        ...

    @property
    def attempt(self) -> int:
        """Number of this run of the turn in this host, 1-based: what the retry policy counts.

        A host that takes the turn over counts from 1 again, so 1 does not say that nothing was done before: recorded
        steps and ``idempotency_key`` see to that. Deaths of hosts are counted apart, towards ``crash_limit``.
        """
        ...

    @property
    def deadline(self) -> datetime | None:
        """When the answer stops being wanted; None when the sender named no time."""
        ...

    @property
    def epoch(self) -> int:
        """The ownership under which this turn runs; it grows with every change of host. A fencing token."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the worker drains. What follows stands in its shutdown strategy; a turn that ends in time commits."""
        ...

    @property
    def bus(self) -> Bus:
        """The worker's connection, for what belongs into a step's function: nothing sent here waits for the commit."""
        ...

    @property
    def clock(self) -> Clock:
        """The worker's time."""
        ...

    @property
    def stop(self) -> tuple[str, str] | None:
        """Why a turn that is being cancelled was stopped from outside, None otherwise: a word and a text for people.

        ``cancel`` (by request: also kill, restart), ``deadline``, ``timeout`` end it here: what a handler that catches
        the ``CancelledError`` returns is committed. ``drain`` and ``lost``: another host goes on with it, let it pass.
        """
        ...

    def idempotency_key(self, step_name: str) -> str:
        """Return a key for an outside effect: the same in every run of this turn, no other turn has it."""
        ...

    async def step(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: object,
        key: str | None = None,
        once: bool = False,
        retry: RetryPolicy | None = None,
        **kwargs: object,
    ) -> Any:  # noqa: ANN401 - what the function returns, or the same read back from JSON
        """Run a function once and record what it returned; a later run of the turn gets that without running it.

        It may execute more than once (a crash between the effect and the record) and is recorded at most once: of two
        hosts the loser takes over the winner's value. The record is found by name and a digest of the arguments, in any
        order; identical calls are told apart by their ordinal. Costs one stored write. A synchronous function runs in a
        thread.

        Args:
            name: Name within the turn, any text of at most 256 bytes.
            fn: Function to run with the arguments that follow.
            *args: Its arguments; they must have a JSON form, unless there is a ``key``.
            key: Stands for the arguments in the record's name.
            once: Never execute it a second time: after a crash in mid-step raise instead.
            retry: Attempts and gaps of this step alone; default: a failing step fails the attempt at the turn.
            **kwargs: Further arguments.

        Raises:
            StepUnknownError: With ``once``, if it began before a crash and nobody knows whether it took effect.
            EncodeError: If arguments or result have no JSON form.
            TurnFencedError: If the turn was taken over meanwhile; let it pass.
        """
        ...

    async def gather(self, *aws: Awaitable[Any]) -> list[Any]:
        """Await several steps, asks or calls at a time and return their values in order.

        If one fails the others are cancelled and awaited, and its error is raised. Those recorded stay recorded.
        """
        ...

    async def call(
        self,
        capability: str | Capability[..., Any],
        value: object = UNSET,
        *,
        timeout_s: float | None = None,
        key: str | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the capability returns, as plain values
        """Have a worker pool run a capability and return its result. A journaled step.

        The task's id follows from the turn and the step, so that a takeover waits for the task that was submitted.

        Args:
            capability: Its name, or the function itself.
            value: Its argument; nothing for one that takes none.
            timeout_s: Longest time to wait, in seconds; default: until the turn's own limit.
            key: Stands for the arguments in the record's name.

        Raises:
            TaskFailedError: If the task ended without a result.
            TaskTimeoutError: If it is not finished in time; it goes on.
        """
        ...

    async def ask(
        self,
        to: str | Address,
        message: object,
        *,
        timeout_s: float = 30.0,
        idempotency_key: str | None = None,
        recorded: bool = True,
    ) -> Any:  # noqa: ANN401 - whatever the other's handler returns, as plain values
        """Send a message to another actor and return its answer. A journaled step; it is sent at once.

        After a takeover the same ask is repeated under the same id, and the other actor, if it has answered it before,
        repeats its answer.

        Args:
            to: Address, or ``type/key``.
            message: A message of a type that the other handles, or plain values.
            timeout_s: Longest time to wait, in seconds.
            idempotency_key: The other handles messages with one key once; default: one of turn and step.
            recorded: False where the answer counts for this run of the turn alone, as inside of a step whose own value
                is recorded: a later run asks again. Without a key it is then asked once, and never repeated.

        Raises:
            AskFailedError: If the other's handler failed; its code and type stand in it.
            AskTimeoutError: If no answer came in time; the mail stands and may still be handled.
            NoHostError: If no worker hosts its type now.
        """
        ...

    async def find(self, capability: str | Capability[..., Any] = "", **what: Any) -> Found:  # noqa: ANN401 - a query
        """Return agents as the registry sees them now; see ``Client.find``. Not journaled: a later run sees others."""
        ...

    async def pick(self, capability: str | Capability[..., Any] = "", **what: Any) -> Picks:  # noqa: ANN401 - a query
        """Choose the least busy agent that fits. A journaled step: a takeover finds the same one picked.

        Its ``ask`` is this turn's ``ask``, journaled too; so is the task of a pool.

        Args:
            capability: What it shall do; "" with a ``type``.
            what: As in ``Client.find``.

        Raises:
            NoAgentError: If nobody fits, or nobody that fits takes work now.
            RegistryAwayError: If the registry cannot be asked now and is not known here.
        """
        ...

    def stream(self, to: str | Address, message: object, *, timeout_s: float = 30.0) -> AsyncIterator[Any]:
        """Send a message to another actor and iterate over the parts of its answer as they are made.

        It is not journaled: a takeover asks anew. ``timeout_s`` is the longest gap between two parts, in seconds.

        Raises:
            AskFailedError: As ``ask``, while iterating.
            AskTimeoutError: If no part came in time.
        """
        ...

    def tell(self, to: str | Address, message: object, *, delay_s: float | None = None) -> None:
        """Send a message without waiting for an answer. Buffered: it leaves with the commit, or never.

        Args:
            to: Address, or ``type/key``; may be this actor itself.
            message: A message of a type that the other handles, or plain values. The message that this turn received
                goes on with the fields its class does not know.
            delay_s: Seconds until it is put into the mailbox; the server holds it.

        Raises:
            InvalidNameError: If the address cannot be used.
            EncodeError: If the message has no JSON form.
        """
        ...

    def remind(
        self,
        name: str,
        message: object,
        *,
        delay_s: float | None = None,
        at: datetime | None = None,
        every: str | float | timedelta | None = None,
    ) -> None:
        """Set a timer that mails a message to this actor; one of the same name is replaced. Set by the commit.

        A firing that was already under way when its timer was replaced or cancelled is dropped. The server holds the
        timer: one missed while it was down fires when it is back (a recurring one at its next time).

        Args:
            name: Name within the actor.
            message: What is mailed.
            delay_s: Seconds until it fires once, counted from now.
            at: When it fires once, a time with zone. One of ``delay_s``, ``at``, ``every`` is given.
            every: How often it fires, 1 s at least: ``"1h30m"`` or seconds.

        Raises:
            ConfigError: If not exactly one time is given, or it cannot be used.
        """
        ...

    def cancel_timer(self, name: str) -> None:
        """Remove a timer with the commit; no firing of it is handled afterwards. None of that name is no error."""
        ...

    def emit(self, name: str, data: object = None) -> None:
        """Publish an event of this actor with the commit, for whoever watches; nobody's mailbox gets it.

        Raises:
            EncodeError: If ``data`` has no JSON form.
        """
        ...

    async def wait_for(
        self,
        kind: type[Any] | str,
        *,
        timeout: str | float | None = None,  # noqa: ASYNC109 - a time that is stored, longer than any process
        where: Where | None = None,
        hold: bool = False,
    ) -> Any:  # noqa: ANN401 - a message of that type
        """Wait for a message to this actor, for minutes or months, without holding anything.

        The turn is parked: its input and recorded steps are stored, unfinished changes of state are thrown away, and
        the object may go. When the message comes the handler runs again from its start, on any host, with the state of
        that moment; recorded steps and earlier waits return at once.

        Args:
            kind: Message type, or its name on the wire (then plain values are returned).
            timeout: Longest wait: ``"3d"`` or seconds; default: for ever.
            where: Fields that the message must have, with their values; others are handled as usual.
            hold: Whether later mail waits behind this turn; else it is handled meanwhile.

        Raises:
            WaitTimeoutError: If none came in time.
            ConfigError: If ``timeout`` is no span of time.
        """
        ...

    def progress(self, percent: float | None = None, *, stage: str | None = None, text: str | None = None) -> bool:
        """Tell watchers how far the turn is; not stored, at most four a second.

        Args:
            percent: 0 to 100.
            stage: Name of the present stage.
            text: A line for people.

        Returns:
            Whether the event went out.
        """
        ...


class TurnRef:
    """Another actor as seen from a turn: ``self.ref("greeter/bob").tell(...)``."""

    __slots__ = ("_turn", "address")

    def __init__(self, turn: TurnApi, address: Address) -> None:
        """``Actor.ref`` makes these; they serve for the turn that made them."""
        self._turn = turn
        self.address = address

    def __repr__(self) -> str:
        """Return the address."""
        return f"<TurnRef {self.address}>"

    def tell(self, message: object, *, delay_s: float | None = None) -> None:
        """Send a message with the commit. See ``TurnApi.tell``."""
        self._turn.tell(self.address, message, delay_s=delay_s)

    async def ask(self, message: object, *, timeout_s: float = 30.0, idempotency_key: str | None = None) -> Any:  # noqa: ANN401
        """Send a message and return the answer. See ``TurnApi.ask``."""
        return await self._turn.ask(self.address, message, timeout_s=timeout_s, idempotency_key=idempotency_key)

    def stream(self, message: object, *, timeout_s: float = 30.0) -> AsyncIterator[Any]:
        """Send a message and iterate over the parts of the answer. See ``TurnApi.stream``."""
        return self._turn.stream(self.address, message, timeout_s=timeout_s)


turn_now: contextvars.ContextVar[TurnApi | None] = contextvars.ContextVar("callboard_turn", default=None)


def current_turn() -> TurnApi:
    """Return the turn that the calling code belongs to, also in its thread and in tasks that it started.

    Raises:
        ActorError: If no turn runs here.
    """
    turn = turn_now.get()
    if turn is None:
        message = "no turn runs here: current_turn() works inside a handler of an actor that a worker hosts"
        raise ActorError(message)
    return turn
