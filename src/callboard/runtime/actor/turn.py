"""A turn: one mail handled by one handler. What it sends is kept back until its commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from callboard.runtime import codec, subjects
from callboard.runtime.actor import message as messages
from callboard.runtime.actor import picking, ref, step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.address import of as _address
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.mail import Link, Mail, mail_headers
from callboard.runtime.actor.outbox import Outbox, event_write, one_per_timer, timer_write, untimer_write
from callboard.runtime.actor.record import AskOutcome, ParkedTurn, ReplyError, Timer, Waited
from callboard.runtime.actor.seat import Seat
from callboard.runtime.actor.services import Services
from callboard.runtime.actor.span import every_rule, span_s
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.capability import Capability
from callboard.runtime.client import TaskHandle
from callboard.runtime.errors import (
    ActorError,
    AskFailedError,
    BusError,
    InputError,
    WaitTimeoutError,
)
from callboard.runtime.registry.handle import Picks, query
from callboard.runtime.registry.message import Found
from callboard.runtime.retry import RetryPolicy

MIN_DELAY_S = 1.0
PROGRESS_EVERY_S = 0.25
# plain, unstored: for whoever watches
PROGRESS = "cb.progress"


class ParkSignal(BaseException):
    """Unwinds a handler that waits; no ``except Exception`` of a handler catches it."""


class Wait(Struct, frozen=True, kw_only=True):
    """What a turn that parks waits for."""

    awaiting: str
    where: Mapping[str, object] | None
    timeout_s: float | None
    hold: bool


class Turn:
    """One run of one mail's handler; implements ``TurnApi``, what an actor's methods delegate to.

    Attributes:
        address: The actor.
        mail: The mail that it handles. For a resumed turn this is the mail it began with.
        cause_seq: Sequence of the mail that made it run now: the same, or the awaited one.
        attempt: Number of this run in this host, 1-based.
        epoch: Epoch of the partition's owner.
        bus: The worker's connection.
        clock: The worker's time.
        wait: Set when it parks.
        stop: Why it was stopped from outside, as code and text, set before the cancellation.
        inner: Turns of its own chain that were handled inside it, in the order in which they ended.
        repeats: Mails that only repeated the questions of those.
        asking: Asks that it waits for now.
        seat: Its place among the turns that run at once; inner turns have none.
        on_ask: Called when it begins to wait for one: mail of its own chain may be there already.
        has_begun: Set when its handler begins.
        is_over: Set when its handler has ended; what a task left behind would do now is refused.
    """

    def __init__(
        self,
        services: Services,
        *,
        address: Address,
        mail: Mail,
        journal: Callable[[], Journal],
        attempt: int,
        epoch: int,
        cause_seq: int,
        parked: ParkedTurn | None = None,
        is_inner: bool = False,
    ) -> None:
        """Activations make these. ``journal`` opens the journal, with the first step."""
        self.address = address
        self.mail = mail
        self.cause_seq = cause_seq
        self.attempt = attempt
        self.epoch = epoch
        self.bus = services.bus
        self.clock = services.clock
        self.wait: Wait | None = None
        self.stop: tuple[str, str] | None = None
        self.inner: list[Turn] = []
        self.repeats: list[int] = []
        self.asking = 0
        self.on_ask: Callable[[], None] | None = None
        self.seat: Seat | None = None
        self.has_begun = False
        self.is_over = False
        self.started_at = services.clock.now()
        self._open_journal = journal
        self._services = services
        self._is_inner = is_inner
        self._loop = asyncio.get_running_loop()
        self._waits = list(parked.waits) if parked is not None else []
        self._waits_done = 0
        self._outbox = Outbox(name for name in parked.steps if name.startswith("~out")) if parked else Outbox()
        self._originals = messages.Originals()
        self._told_s = float("-inf")
        self._stage: str | None = None

    # --- what it is

    @property
    def key(self) -> str:
        """The actor's key."""
        return self.address.key

    @cached_property
    def journal(self) -> Journal:
        """Its steps; opened when first asked for."""
        return self._open_journal()

    @property
    def steps(self) -> tuple[int, int]:
        """How many steps this run has recorded, and how many were there already."""
        journal: Journal | None = self.__dict__.get("journal")
        return (journal.executed, journal.replayed + journal.adopted) if journal is not None else (0, 0)

    @property
    def is_stopping(self) -> bool:
        """Whether the worker drains."""
        return self._services.drain is not None

    @property
    def deadline(self) -> datetime | None:
        """When the answer stops being wanted."""
        return self.mail.deadline

    @property
    def chain(self) -> tuple[Link, ...]:
        """The turns that led here, this one last."""
        return (*self.mail.chain, Link(self.address, self.mail.seq))

    @property
    def own_outgoing(self) -> list[Write]:
        """What this turn itself sends with the commit, in order."""
        return one_per_timer(self._outbox.writes)

    @property
    def outgoing(self) -> list[Write]:
        """What is sent with the commit, by this turn and by those that were handled inside it."""
        return one_per_timer([*self._outbox.writes, *(write for turn in self.inner for write in turn.outgoing)])

    @property
    def own_timers(self) -> dict[str, Timer | None]:
        """Timers that this turn itself sets, None for those that it takes away."""
        return dict(self._outbox.timers)

    @property
    def timers(self) -> dict[str, Timer | None]:
        """Timers that are set and taken away by this turn and by those inside it."""
        found = self.own_timers
        for turn in self.inner:
            found |= turn.timers
        return found

    @property
    def handled(self) -> list[int]:
        """Sequences of the mails that its commit handles."""
        return [self.cause_seq, *(turn.cause_seq for turn in self.inner), *self.repeats]

    @property
    def sent(self) -> frozenset[str]:
        """Identities of everything sent up to the end of this run, for a turn that parks."""
        return self._outbox.sent

    @property
    def waits(self) -> list[Waited]:
        """How its waits ended so far."""
        return list(self._waits)

    def receive(self, argument: object, shape: messages.Shape | None) -> None:
        """Take note of the message that its handler is given: sent on, it keeps the fields its class does not know."""
        data = self.mail.data
        if self.mail.type is None:
            envelope = messages.open_envelope(data, self.mail.content_type)
            # the message stands inside; a class that has these fields itself is no envelope
            if envelope is not None and shape is not None and shape.fields is not None and "data" not in shape.fields:
                data = envelope[1]
        self._originals.remember(argument, shape, data, self.mail.content_type)

    def discard(self) -> None:
        """Send nothing of it: it failed."""
        self._outbox = Outbox()
        self.inner = []

    # --- steps

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
        """See ``TurnApi``. The step's place is taken by the call."""
        self._check_open()
        return self.journal.run(name, fn, args, kwargs, key=key, once=once, retry=retry)

    async def gather(self, *aws: Awaitable[Any]) -> list[Any]:
        """See ``TurnApi``."""
        tasks = [asyncio.ensure_future(part) for part in aws]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise

    async def call(
        self,
        capability: str | Capability[..., Any],
        value: object = UNSET,
        *,
        timeout_s: float | None = None,
        key: str | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the capability returns
        """See ``TurnApi``. Two records: that the task was submitted, and its result."""
        self._check_open()
        name = capability.name if isinstance(capability, Capability) else capability
        client = self._services.client
        identity = key if key is not None else _plain(value)
        submitting, waiting = f"~submit {name}", f"~call {name}"
        with (
            await self.journal.begin(submitting, identity) as began,
            await self.journal.begin(waiting, identity) as slot,
        ):
            if not slot.is_recorded:
                if not began.is_recorded:
                    # the broker knows an id for minutes only, a task may take longer
                    own, limit = step.short_id(slot.id), self.deadline
                    handle = await client.submit(
                        name, value, id=own, deadline=limit, notify=True, headers=self._headers()
                    )
                    _ = await began.record(handle)
                handle = msgspec.convert(began.value, TaskHandle)
                async with self._away():
                    result = await client.wait(handle, timeout_s=timeout_s)
                _ = await slot.record(result)
            return slot.value

    async def ask(
        self,
        to: str | Address,
        message: object,
        *,
        timeout_s: float = 30.0,
        idempotency_key: str | None = None,
        recorded: bool = True,
    ) -> Any:  # noqa: ANN401 - whatever the other's handler returns
        """See ``TurnApi``. What the other answered is recorded, an error of its handler too."""
        self._check_open()
        target = ref.ActorRef(self._services.bus, _address(to), clock=self._services.clock)
        if not recorded:
            return (await self._asked(target, message, key=idempotency_key, timeout_s=timeout_s)).given(target.address)
        given = [self._originals.type_name(message), _plain(message)] if idempotency_key is None else idempotency_key
        with await self.journal.begin(step.short_name(f"~ask {target.address}"), given) as slot:
            if not slot.is_recorded:
                key = idempotency_key or step.short_id(slot.id)
                _ = await slot.record(await self._asked(target, message, key=key, timeout_s=timeout_s))
            return msgspec.convert(slot.value, AskOutcome).given(target.address)

    async def _asked(self, target: ref.ActorRef, message: object, *, key: str | None, timeout_s: float) -> AskOutcome:
        self.asking += 1
        if self.on_ask is not None:
            self.on_ask()
        try:
            async with self._away():
                value = await target.ask(
                    self._originals.encode(message),
                    type=self._originals.type_name(message),
                    timeout_s=timeout_s,
                    deadline=self.deadline,
                    idempotency_key=key,
                    headers=self._headers(),
                )
        except AskFailedError as error:
            return AskOutcome(error=ReplyError(code=error.cause_code, message=str(error), type=error.cause_type))
        finally:
            self.asking -= 1
        return AskOutcome(value=value)

    async def find(self, capability: str | Capability[..., Any] = "", **what: Any) -> Found:  # noqa: ANN401 - a query
        """See ``TurnApi``."""
        return await self._services.client.find(capability, **what)

    async def pick(self, capability: str | Capability[..., Any] = "", **what: Any) -> Picks:  # noqa: ANN401 - a query
        """See ``TurnApi``."""
        self._check_open()
        return await picking.pick(self, self._services, query(capability, **what))

    async def stream(self, to: str | Address, message: object, *, timeout_s: float = 30.0) -> AsyncIterator[Any]:
        """See ``TurnApi``. Not recorded: a turn that runs again asks again."""
        self._check_open()
        target = ref.ActorRef(self._services.bus, _address(to), clock=self._services.clock)
        async with target.stream(
            self._originals.encode(message),
            type=self._originals.type_name(message),
            timeout_s=timeout_s,
            deadline=self.deadline,
            headers=self._headers(),
        ) as parts:
            async for part in parts:
                yield part

    @contextlib.asynccontextmanager
    async def _away(self) -> AsyncIterator[None]:
        """Let other turns run in this one's place while it only waits."""
        if self.seat is None:
            yield
            return
        async with self.seat.away():
            yield

    def _check_open(self) -> None:
        if self.is_over:
            text = f"the turn {self.address}@{self.mail.seq} is over: await what you start in a handler"
            raise ActorError(text)

    def _headers(self) -> dict[str, str]:
        return mail_headers(sender=self._sender, chain=self.chain)

    @property
    def _sender(self) -> str:
        """Its address as a header can carry it."""
        text = str(self.address)
        return text if text.isprintable() and text == text.strip() else f"{self.address.type}/{self.address.token}"

    # --- what goes out with the commit

    def tell(self, to: str | Address, message: object, *, delay_s: float | None = None) -> None:
        """See ``TurnApi``."""
        address = _address(to)
        data, name = self._originals.encode(message), self._originals.type_name(message)
        identity = self._outbox.identity("tell", str(address), name or "", data)
        # an actor that tells itself something later works in rounds, which is no circle of messages
        is_round = delay_s is not None and address == self.address
        # no id: what a commit holds is stored once
        headers = mail_headers(type=name, sender=self._sender, chain=() if is_round else self.chain)
        subject = subjects.mail(address.type, address.key)
        if delay_s is None:
            _ = self._send(identity, Write(subject, data, headers))
            return
        due = self._services.clock.now() + timedelta(seconds=max(MIN_DELAY_S, delay_s))
        # a schedule of its own: the name is unique, so it replaces no other
        place = subjects.timer(self.address.type, self.address.key, f"~tell.{self.mail.seq}.{identity}")
        _ = self._send(identity, Write(place, data, headers | header.at(due, subject)))

    def remind(
        self,
        name: str,
        message: object,
        *,
        delay_s: float | None = None,
        at: datetime | None = None,
        every: str | float | timedelta | None = None,
    ) -> None:
        """See ``TurnApi``."""
        if sum(given is not None for given in (delay_s, at, every)) != 1:
            text = f"reminder {name!r}: give one of delay_s, at and every"
            raise InputError(text)
        if name.startswith("~"):
            text = f"reminder {name!r}: names that begin with ~ belong to Callboard"
            raise InputError(text)
        if at is not None and at.tzinfo is None:
            text = f"reminder {name!r}: `at` takes an aware time, this one has no time zone"
            raise InputError(text)
        now = self._services.clock.now()
        timer: Timer
        if every is not None:
            timer = Timer(generation=self.cause_seq, rule=every_rule(every))
        else:
            due = at if at is not None else now + timedelta(seconds=delay_s or 0.0)
            timer = Timer(generation=self.cause_seq, due=max(due, now + timedelta(seconds=MIN_DELAY_S)))
        data, kind = self._originals.encode(message), self._originals.type_name(message)
        self.set_timer(name, timer, data, kind)

    def set_timer(self, name: str, timer: Timer, data: bytes, message_type: str | None) -> None:
        """Set or replace a timer of this actor with the commit."""
        write = timer_write(self.address, name, timer, data, message_type)
        if self._send(self._outbox.identity("timer", name, timer.rule, data), write):
            self._outbox.timers[name] = timer

    def cancel_timer(self, name: str) -> None:
        """See ``TurnApi``."""
        if self._send(self._outbox.identity("untimer", name, "", b""), untimer_write(self.address, name)):
            self._outbox.timers[name] = None

    def emit(self, name: str, data: object = None) -> None:
        """See ``TurnApi``."""
        write = event_write(self.address, name, data, ttl_s=self._services.rules.event_ttl_s)
        _ = self._send(self._outbox.identity("emit", name, "", write.data), write)

    def _send(self, identity: str, write: Write) -> bool:
        self._check_open()
        return self._outbox.put(identity, write)

    # --- waiting

    async def wait_for(
        self,
        kind: type[Any] | str,
        *,
        timeout: str | float | None = None,  # noqa: ASYNC109 - stored, not awaited
        where: Mapping[str, object] | None = None,
        hold: bool = False,
    ) -> Any:  # noqa: ANN401 - the message
        """See ``TurnApi``."""
        self._check_open()
        if self._is_inner:
            text = "a turn that answers its own chain cannot wait: the turn around it is not finished"
            raise InputError(text)
        if self._waits_done < len(self._waits):
            waited = self._waits[self._waits_done]
            self._waits_done += 1
            return self._waited(waited, kind)
        name = kind if isinstance(kind, str) else getattr(kind, "__callboard_name__", kind.__name__)
        if where is not None:
            _ = _plain(dict(where))
        self.wait = Wait(awaiting=name, where=where, timeout_s=None if timeout is None else span_s(timeout), hold=hold)
        raise ParkSignal

    def _waited(self, waited: Waited, kind: type[Any] | str) -> Any:  # noqa: ANN401 - the message
        if waited.timed_out or waited.data is UNSET:
            name = kind if isinstance(kind, str) else kind.__name__
            text = f"no {name} came in time"
            raise WaitTimeoutError(text)
        shape = messages.Shape(Any if isinstance(kind, str) else kind)
        value = shape.decode(waited.data, waited.content_type or None)
        self._originals.remember(value, shape, waited.data, waited.content_type or None)
        return value

    def idempotency_key(self, step_name: str) -> str:
        """See ``TurnApi``."""
        return f"{self.address}/{self.mail.seq}/{step_name}"

    def progress(self, percent: float | None = None, *, stage: str | None = None, text: str | None = None) -> bool:
        """See ``TurnApi``."""
        services = self._services
        now_s = services.clock.monotonic()
        is_turn = (stage is not None and stage != self._stage) or percent == 100  # noqa: PLR2004
        if not is_turn and now_s - self._told_s < PROGRESS_EVERY_S:
            return False
        self._told_s, self._stage = now_s, stage or self._stage
        where = {"actor": str(self.address), "seq": self.mail.seq, "worker": services.worker}
        how_far = {"percent": percent, "stage": stage, "text": text, "at": services.clock.now()}
        body = codec.encode({**where, **how_far})
        subject = f"{PROGRESS}.{self.address.type}.{self.address.token}"

        def send() -> None:
            _ = services.spawn(_quietly(services.bus, subject, body), "actor-progress")

        # a handler in a thread calls this too
        self._loop.call_soon_threadsafe(send)
        return True


async def _quietly(bus: Bus, subject: str, body: bytes) -> None:
    with contextlib.suppress(BusError):
        await bus.publish(subject, body)


def _plain(value: object) -> object:
    if value is UNSET:
        return None
    if isinstance(value, bytes):
        return value.hex()
    return msgspec.json.decode(codec.encode(value))
