"""A turn: one mail handled by one handler. What it sends is kept back until its commit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from callboard.runtime import codec, subjects
from callboard.runtime.actor import answer, ref
from callboard.runtime.actor import message as messages
from callboard.runtime.actor.address import Address, parse
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.mail import KIND_TIMER, KIND_WAIT_TIMEOUT, Link, Mail, mail_headers
from callboard.runtime.actor.record import Parked, ParkedTurn, ReplyError, Timer, Waited
from callboard.runtime.actor.services import Services
from callboard.runtime.actor.span import every_rule, span_s
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.capability import Capability
from callboard.runtime.client import Client
from callboard.runtime.errors import (
    ActorError,
    AskFailedError,
    BusError,
    InputError,
    WaitTimeoutError,
)
from callboard.runtime.retry import RetryPolicy

WAIT_TIMER = "~wait"
MIN_DELAY_S = 1.0
MAX_OUTGOING = 900
PROGRESS_EVERY_S = 0.25
# plain, unstored: for whoever watches
PROGRESS = "cb.progress"


class ParkSignal(BaseException):
    """Unwinds a handler that waits; no ``except Exception`` of a handler catches it."""


class AskOutcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a journaled ask came to."""

    value: Any = None
    error: ReplyError | UnsetType = UNSET


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
        wait: Set when it parks.
        timers: Timers to be set, None for one to be taken away.
        stop: Why it was stopped from outside, as code and text, set before the cancellation.
        reentered: Mails of its own chain that were handled inside it.
        is_over: Set when its handler has ended; what a task left behind would send now is refused.
    """

    def __init__(
        self,
        services: Services,
        *,
        address: Address,
        mail: Mail,
        journal: Journal,
        attempt: int,
        epoch: int,
        cause_seq: int,
        parked: ParkedTurn | None = None,
        parent: Turn | None = None,
    ) -> None:
        """Activations make these."""
        self.address = address
        self.mail = mail
        self.cause_seq = cause_seq
        self.attempt = attempt
        self.epoch = epoch
        self.wait: Wait | None = None
        self.timers: dict[str, Timer | None] = {}
        self.stop: tuple[str, str] | None = None
        self.reentered: list[int] = []
        self.is_over = False
        self.started_at = services.clock.now()
        self._services = services
        self.journal = journal
        self._parent = parent
        self._waits = list(parked.waits) if parked is not None else []
        self._waits_done = 0
        self._sent = frozenset(name for name in parked.steps if name.startswith("~out")) if parked else frozenset()
        self._outgoing: dict[str, Write] = {}
        self._originals = messages.Originals()
        self._ordinals: dict[str, int] = {}
        self._told_s = float("-inf")
        self._stage: str | None = None

    # --- what it is

    @property
    def key(self) -> str:
        """The actor's key."""
        return self.address.key

    @property
    def deadline(self) -> datetime | None:
        """When the answer stops being wanted."""
        return self.mail.deadline

    @property
    def chain(self) -> tuple[Link, ...]:
        """The turns that led here, this one last."""
        return (*self.mail.chain, Link(self.address, self.mail.seq))

    @property
    def outgoing(self) -> list[Write]:
        """Everything to be stored with the commit, in the order in which it was sent."""
        return list(self._outgoing.values())

    @property
    def sent(self) -> frozenset[str]:
        """Identities of everything sent up to the end of this run, for a turn that parks."""
        return self._sent | frozenset(self._outgoing)

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
        """See ``TurnApi``."""
        name = capability.name if isinstance(capability, Capability) else capability
        client = Client(self._services.bus, clock=self._services.clock)
        with await self.journal.begin(f"~call {name}", key if key is not None else _plain(value)) as slot:
            if not slot.is_recorded:
                handle = await client.submit(
                    name, value, id=_short(slot.id), deadline=self.deadline, notify=True, headers=self._headers()
                )
                _ = await slot.record(await client.wait(handle, timeout_s=timeout_s))
            return slot.value

    async def ask(
        self, to: str | Address, message: object, *, timeout_s: float = 30.0, idempotency_key: str | None = None
    ) -> Any:  # noqa: ANN401 - whatever the other's handler returns
        """See ``TurnApi``. What the other answered is recorded, an error of its handler too."""
        target = ref.ActorRef(self._services.bus, _address(to), clock=self._services.clock)
        identity = (
            idempotency_key if idempotency_key is not None else [self._originals.type_name(message), _plain(message)]
        )
        with await self.journal.begin(f"~ask {target.address}", identity) as slot:
            if not slot.is_recorded:
                outcome = AskOutcome()
                try:
                    value = await target.ask(
                        self._originals.encode(message),
                        type=self._originals.type_name(message),
                        timeout_s=timeout_s,
                        deadline=self.deadline,
                        idempotency_key=idempotency_key or _short(slot.id),
                        headers=self._headers(),
                    )
                    outcome = AskOutcome(value=value)
                except AskFailedError as error:
                    outcome = AskOutcome(
                        error=ReplyError(code=error.cause_code, message=str(error), type=error.cause_type)
                    )
                _ = await slot.record(outcome)
            found = msgspec.convert(slot.value, AskOutcome)
        if found.error is not UNSET:
            raise answer.exception(found.error, target.address)
        return found.value

    async def stream(self, to: str | Address, message: object, *, timeout_s: float = 30.0) -> AsyncIterator[Any]:
        """See ``TurnApi``. Not recorded: a turn that runs again asks again."""
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

    def _headers(self) -> dict[str, str]:
        return mail_headers(sender=str(self.address), chain=self.chain)

    # --- what goes out with the commit

    def tell(
        self,
        to: str | Address,
        message: object,
        *,
        delay_s: float | None = None,
    ) -> None:
        """See ``TurnApi``."""
        address = _address(to)
        data, name = self._originals.encode(message), self._originals.type_name(message)
        identity = self._identity("tell", str(address), name or "", data)
        # no id: what a commit holds is stored once
        headers = mail_headers(type=name, sender=str(self.address), chain=self.chain)
        subject = subjects.mail(address.type, address.key)
        if delay_s is None:
            self._send(identity, Write(subject, data, headers))
            return
        due = self._services.clock.now() + timedelta(seconds=max(MIN_DELAY_S, delay_s))
        # a schedule of its own: the name is unique, so it replaces no other
        place = subjects.timer(self.address.type, self.address.key, f"~tell.{self.mail.seq}.{identity}")
        self._send(identity, Write(place, data, headers | header.at(due, subject)))

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

    def set_timer(
        self, name: str, timer: Timer, data: bytes, message_type: str | None, *, time_zone: str | None = None
    ) -> None:
        """Set or replace a timer of this actor with the commit."""
        write = timer_write(self.address, name, timer, data, message_type, time_zone=time_zone)
        self._send(self._identity("timer", name, "", write.data), write)
        self.timers[name] = timer

    def cancel_timer(self, name: str) -> None:
        """See ``TurnApi``."""
        # a firing that is under way finds no timer of its generation and is dropped
        self.timers[name] = None
        subject = subjects.timer(self.address.type, self.address.key, name)
        self._send(self._identity("untimer", name, "", b""), Write(subject, b"", header.build(rollup=True, ttl_s=1.0)))

    def emit(self, name: str, data: object = None) -> None:
        """See ``TurnApi``."""
        body = codec.encode(data)
        headers = header.build(ttl_s=self._services.rules.event_ttl_s, extra={header.TYPE: name})
        subject = subjects.event(self.address.type, self.address.key)
        self._send(self._identity("emit", name, "", body), Write(subject, body, headers))

    def _identity(self, what: str, to: str, name: str, data: bytes) -> str:
        digest = hashlib.blake2b(f"{what}\0{to}\0{name}\0".encode() + data, digest_size=8).hexdigest()
        stem = f"~out-{what}.{digest}"
        ordinal = self._ordinals.get(stem, 0)
        self._ordinals[stem] = ordinal + 1
        return f"{stem}.{ordinal}"

    def _send(self, identity: str, write: Write) -> None:
        if self.is_over:
            text = f"the turn {self.address}@{self.mail.seq} is over: await what you start in a handler"
            raise ActorError(text)
        if self._parent is not None:
            self._parent._send(f"{self.mail.seq}{identity}", write)  # noqa: SLF001 - a turn inside a turn
            return
        if identity in self._sent:
            return
        if len(self._outgoing) >= MAX_OUTGOING:
            text = f"a turn sends at most {MAX_OUTGOING} messages, timers and events: spread them over several turns"
            raise InputError(text)
        self._outgoing[identity] = write

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
        if self._parent is not None:
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
        body = codec.encode(
            {
                "actor": str(self.address),
                "seq": self.mail.seq,
                "worker": services.worker,
                "percent": percent,
                "stage": stage,
                "text": text,
                "at": services.clock.now(),
            }
        )
        _ = services.spawn(
            _quietly(services.bus.publish(f"{PROGRESS}.{self.address.type}.{self.address.token}", body)),
            "actor-progress",
        )
        return True


def timer_write(
    address: Address, name: str, timer: Timer, data: bytes, message_type: str | None, *, time_zone: str | None = None
) -> Write:
    """Return the write that has the server hold a timer."""
    target = subjects.mail(address.type, address.key)
    if timer.due is not UNSET:
        schedule = header.at(timer.due, target)
    else:
        schedule = header.recurring(timer.rule, target, time_zone=time_zone)
    extra = schedule | {
        header.MAIL_KIND: KIND_TIMER,
        header.TIMER: name,
        header.TIMER_GENERATION: str(timer.generation),
    }
    return Write(subjects.timer(address.type, address.key, name), data, mail_headers(type=message_type, extra=extra))


def wait_timer_write(address: Address, parked: Parked, generation: int) -> Write:
    """Return the write that has the server end a wait in time."""
    if parked.until is UNSET:
        text = "a wait without an end has no timer"
        raise InputError(text)
    extra = header.at(parked.until, subjects.mail(address.type, address.key)) | {
        header.MAIL_KIND: KIND_WAIT_TIMEOUT,
        header.TIMER: f"{WAIT_TIMER}.{parked.seq}.{parked.waits}",
        header.TIMER_GENERATION: str(generation),
    }
    place = subjects.timer(address.type, address.key, f"{WAIT_TIMER}.{parked.seq}")
    return Write(place, b"null", extra)


async def _quietly(call: Awaitable[None]) -> None:
    with contextlib.suppress(BusError):
        await call


def _short(step_id: str) -> str:
    """Return a step's id as one that a client may choose: long ones by their hash."""
    if len(step_id.encode()) <= subjects.MAX_KEY_BYTES:
        return step_id
    return f"step/{hashlib.blake2b(step_id.encode(), digest_size=16).hexdigest()}"


def _address(to: str | Address) -> Address:
    return parse(to) if isinstance(to, str) else to


def _plain(value: object) -> object:
    if value is UNSET:
        return None
    if isinstance(value, bytes):
        return value.hex()
    return msgspec.json.decode(codec.encode(value))
