"""An actor as others see it: tell it something, ask it, listen while it answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from callboard.runtime import codec, ids, subjects, tracing
from callboard.runtime import deadline as deadlines
from callboard.runtime.actor import address as addresses
from callboard.runtime.actor import payload
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.answer import value_of
from callboard.runtime.actor.mail import mail_headers, mail_write
from callboard.runtime.actor.message import type_name_of
from callboard.runtime.actor.parts import AskStream
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, Bus, Message, Write
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import (
    AskTimeoutError,
    BusTimeoutError,
    ConflictError,
    InvalidHeaderError,
    NoHostError,
    NoRespondersError,
)

R = TypeVar("R")

DEFAULT_ASK_S = 30.0
# A host that stored an ask's mail and died leaves silence: whoever has a key asks again, ever more rarely.
REPEAT_FIRST_S = 5.0
REPEAT_MAX_S = 60.0
# The link is down: give it a moment before the question goes into its buffer again.
LOST_PAUSE_S = 0.25
_MIN_DELAY_S = 1.0
# The server obeys these on a mail, and would delete what stands in the mailbox, or in the whole stream.
_DELETING = frozenset({header.ROLLUP, header.TTL})


# Errors of an ask that say nothing of the actor: the same question may fare better in a moment.
_PASSING = frozenset({NoRespondersError.code, BusTimeoutError.code})


class ActorRef:
    """One actor's address with a connection behind it. Cheap: it holds nothing and needs no closing.

    Attributes:
        address: Who it is.
    """

    __slots__ = ("_bus", "_clock", "address")

    def __init__(self, bus: Bus, address: Address | str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Refer to an actor, whether it exists yet or not.

        Args:
            bus: The connection; not owned.
            address: Who: an address, or ``type/key``.
            clock: Time.

        Raises:
            InvalidNameError: If it is no address.
        """
        self._bus = bus
        self._clock = clock
        self.address = addresses.of(address)

    def __repr__(self) -> str:
        """Return its address."""
        return f"<ActorRef {self.address}>"

    async def tell(
        self,
        message: object,
        *,
        type: str | None = None,  # noqa: A002 - the word of the wire contract
        id: str | None = None,  # noqa: A002 - as above
        delay_s: float | None = None,
        deadline: datetime | timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> int:
        """Put a message into the mailbox; returns when it is on the broker's disk. One round trip.

        It waits there for a host if none runs. The actor handles it once, after all that came before. A message over
        256 KiB goes to the object store, and a claim check into the mailbox.

        Args:
            message: A Struct, dataclass or model; or plain values with ``type``. ``bytes`` go out as they are.
            type: Name of the message type; the class's name when None.
            id: Idempotency key within this actor: a second tell under it has no second effect.
            delay_s: Deliver no sooner than in so many seconds (1 at least; the server holds it).
            deadline: When it stops being wanted; later it is dropped unhandled.
            headers: Further headers.
            timeout_s: How long to wait for the broker.

        Returns:
            The mail's sequence, its place in the order; of the first one when the broker knows the id already. With
            ``delay_s`` the sequence of the schedule: the mail has one of its own when it is due. For a user who hands
            mail in (``Bus.is_guest``), its sequence in the post, which becomes mail in that order.

        Raises:
            EncodeError: If the message cannot be encoded.
            InvalidNameError: If the id cannot be used.
            InvalidHeaderError: If a header would have the server delete mail.
            DeadlineError: If the deadline has passed.
            PayloadTooLargeError: If it is over the server's limit.
            NoRespondersError: If the streams are missing.
            BusTimeoutError: If the outcome is unknown: tell again under the same id.
        """
        with tracing.span(f"tell {self.address.type}", "producer", self._traits):
            data, extra = self._mail(message, type, id, headers)
            data = await payload.stow(BlobStore(self._bus), data, extra)
            if deadline is not None:
                extra[header.DEADLINE] = self._deadline(deadline)
            if self._bus.is_guest:
                return await self._hand_in(data, extra, id, delay_s, timeout_s)
            if delay_s is not None:
                return await self._tell_later(data, extra, id, delay_s, timeout_s)
            if id is not None:
                extra[header.MSG_ID] = self._stream_id(id)
            return await self._store(mail_write(self.address, data, extra), timeout_s)

    @overload
    async def ask(
        self,
        message: object,
        *,
        type: str | None = None,
        timeout_s: float = DEFAULT_ASK_S,
        idempotency_key: str | None = None,
        deadline: datetime | timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        returns: type[R],
    ) -> R: ...

    @overload
    async def ask(
        self,
        message: object,
        *,
        type: str | None = None,
        timeout_s: float = DEFAULT_ASK_S,
        idempotency_key: str | None = None,
        deadline: datetime | timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        returns: None = None,
    ) -> Any: ...  # noqa: ANN401 - plain values of whatever the handler returned

    async def ask(
        self,
        message: object,
        *,
        type: str | None = None,  # noqa: A002 - as in tell
        timeout_s: float = DEFAULT_ASK_S,
        idempotency_key: str | None = None,
        deadline: datetime | timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        returns: type[Any] | None = None,
    ) -> Any:
        """Ask and wait for the answer, which comes after the turn is committed.

        The question is a mail: it waits its turn, and is handled once even when the answer is lost on its way. With a
        key it is asked again after a lost connection or a long silence, until the time is over; without one it is
        sent once, since a repeat would be a second question.

        Args:
            message: As in ``tell``.
            type: As in ``tell``.
            timeout_s: How long to wait. It travels as a deadline: what nobody waits for any more is not begun.
            idempotency_key: Names the question: a repeat of it gets the stored answer.
            deadline: When the answer stops being wanted, if that is sooner.
            headers: Further headers.
            returns: Type to decode the answer into; None gives plain values.

        Raises:
            NoHostError: If no worker hosts the type now; nothing was stored.
            AskTimeoutError: If no answer came in time; the mail may still be handled if its deadline allows.
            UnknownMessageError: If the actor has no handler for it.
            MailboxFullError: If its mailbox is full; it was not handled.
            ActorStoppedError: If the actor has failed too often or was killed; at a paused one the question waits.
            AskFailedError: If its handler raised.
            DecodeError: If the message does not fit its handler, or the answer does not fit ``returns``.
        """
        with tracing.span(f"ask {self.address.type}", "client", self._traits):
            data, extra = self._mail(message, type, idempotency_key, headers)
            data = await payload.stow(BlobStore(self._bus), data, extra)
            left_s = self._limit(extra, deadline, timeout_s)
            if idempotency_key is None:
                answer = await self._ask_once(data, extra, left_s)
            else:
                answer = await self._ask_until(data, extra, left_s)
            return await value_of(answer, self.address, self._bus, returns=returns)

    def stream(
        self,
        message: object,
        *,
        type: str | None = None,  # noqa: A002 - as in tell
        timeout_s: float = DEFAULT_ASK_S,
        idempotency_key: str | None = None,
        deadline: datetime | timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AskStream:
        """Ask, and see parts of the answer while the turn runs. See ``AskStream`` for what they promise.

        ``async with ref.stream(question) as parts:`` then ``async for part in parts: ...`` and ``parts.value``.

        Args:
            message: As in ``tell``.
            type: As in ``tell``.
            timeout_s: How long to wait for the end.
            idempotency_key: As in ``ask``; a stream is not asked again by itself.
            deadline: As in ``ask``.
            headers: Further headers.
        """
        data, extra = self._mail(message, type, idempotency_key, headers)
        extra[header.STREAM] = "1"
        left_s = self._limit(extra, deadline, timeout_s)
        return AskStream(self._bus, self.address, data, extra, timeout_s=left_s, clock=self._clock)

    # --- inside

    def _stream_id(self, own_id: str) -> str:
        # the broker looks for repeats in the whole stream, so the id alone would hide another actor's mail
        return f"{self.address.type}/{self.address.token}/{own_id}"

    async def _store(self, write: Write, timeout_s: float) -> int:
        try:
            return (await self._bus.store(write, timeout_s=timeout_s)).seq
        except NoRespondersError as error:
            raise _no_stream() from error

    async def _hand_in(
        self, data: bytes, extra: dict[str, str], own_id: str | None, delay_s: float | None, timeout_s: float
    ) -> int:
        """Give the mail to the post, as our user may not write into the stream of mail."""
        if own_id is not None:
            extra[header.MSG_ID] = self._stream_id(own_id)
        if delay_s is not None:
            due = self._clock.now() + timedelta(seconds=max(_MIN_DELAY_S, delay_s))
            extra[header.NOT_BEFORE] = deadlines.stamp(due)
        subject = subjects.tell(self.address.type, self.address.key)
        return await self._store(Write(subject, data, extra or None), timeout_s)

    def _traits(self) -> dict[str, str]:
        return {"messaging.system": "nats", "callboard.actor": str(self.address)}

    def _mail(
        self, message: object, kind: str | None, own_id: str | None, headers: Mapping[str, str] | None
    ) -> tuple[bytes, dict[str, str]]:
        if own_id is not None:
            ids.check(own_id)
        for name in headers or ():
            if name in _DELETING:
                text = f"header {name}: the server would delete mail by it; for mail that ages there is `deadline`"
                raise InvalidHeaderError(text)
        data = bytes(message) if isinstance(message, (bytes, bytearray, memoryview)) else codec.encode(message)
        return data, mail_headers(type=kind or type_name_of(message), id=own_id, extra=headers)

    def _deadline(self, wanted: datetime | timedelta) -> str:
        return deadlines.stamp(deadlines.moment(wanted, now=self._clock.now()))

    def _limit(self, extra: dict[str, str], wanted: datetime | timedelta | None, timeout_s: float) -> float:
        """Write the deadline of an ask into its headers; return how long to wait."""
        now = self._clock.now()
        end = now + timedelta(seconds=timeout_s)
        if wanted is not None:
            end = min(end, deadlines.moment(wanted, now=now))
        extra[header.DEADLINE] = deadlines.stamp(end)
        return (end - now).total_seconds()

    async def _tell_later(
        self, data: bytes, extra: dict[str, str], own_id: str | None, delay_s: float, timeout_s: float
    ) -> int:
        due = self._clock.now() + timedelta(seconds=max(_MIN_DELAY_S, delay_s))
        token = ids.new_token()
        expected = None
        if own_id is not None:
            # a repeat must find the first one and not move it
            token = hashlib.sha256(f"{self.address}\n{own_id}".encode()).hexdigest()[:32]
            expected = 0
        subject = subjects.timer("client", token, "tell")
        target = subjects.mail(self.address.type, self.address.key)
        headers = header.build(expected_seq=expected, extra=extra | header.at(due, target))
        try:
            return await self._store(Write(subject, data, headers), timeout_s)
        except ConflictError as error:
            return error.last_seq

    async def _ask_once(self, data: bytes, extra: dict[str, str], timeout_s: float) -> Message:
        began_s = self._clock.monotonic()
        try:
            return await self._request(data, extra, timeout_s)
        except NoRespondersError as error:
            raise no_host(self.address) from error
        except BusTimeoutError as error:
            waited_s = self._clock.monotonic() - began_s
            if waited_s < timeout_s - LOST_PAUSE_S:
                message = (
                    f"the connection was lost after {waited_s:.1f} s while {self.address} was asked: whether it has "
                    "the question is unknown; with an idempotency key it would be asked again by itself"
                )
                raise AskTimeoutError(message) from error
            raise timed_out(self.address, timeout_s) from error

    async def _ask_until(self, data: bytes, extra: dict[str, str], timeout_s: float) -> Message:
        """Ask, and ask again after silence, with all questions open: whichever is answered first ends it."""
        clock = self._clock
        give_up_s = clock.monotonic() + timeout_s
        pause_s = REPEAT_FIRST_S
        asked: set[asyncio.Task[Message]] = set()
        is_first = True
        try:
            while (left_s := give_up_s - clock.monotonic()) > 0:
                asked.add(asyncio.create_task(self._request(data, extra, left_s), name="ask"))
                answer = await self._first_answer(asked, min(pause_s, left_s), is_first=is_first)
                if answer is not None:
                    return answer
                # with questions still open it was silence, which is waited for longer each time
                pause_s = min(pause_s * 2, REPEAT_MAX_S) if asked else REPEAT_FIRST_S
                is_first = False
        finally:
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)
        raise timed_out(self.address, timeout_s)

    async def _first_answer(
        self, asked: set[asyncio.Task[Message]], wait_s: float, *, is_first: bool
    ) -> Message | None:
        """Return the first answer within ``wait_s``; None after silence, or a moment after every question failed."""
        timer = asyncio.create_task(self._clock.sleep(wait_s), name="ask-silence")
        try:
            while not timer.done() and asked:
                done, _ = await asyncio.wait({*asked, timer}, return_when=asyncio.FIRST_COMPLETED)
                for task in asked & done:
                    asked.discard(task)
                    error = task.exception()
                    if error is None:
                        answer = task.result()
                        if (answer.headers or {}).get(header.ERROR) in _PASSING:
                            # the host that took it could not store it: the broker is between two leaders, say
                            continue
                        return answer
                    if isinstance(error, NoRespondersError) and is_first:
                        raise no_host(self.address) from error
                    # hosts that went away may come back, and so may the link
                    if not isinstance(error, (NoRespondersError, BusTimeoutError)):
                        raise error
        finally:
            timer.cancel()
        if not asked:
            await self._clock.sleep(LOST_PAUSE_S)
        return None

    async def _request(self, data: bytes, extra: dict[str, str], timeout_s: float) -> Message:
        kind, key = self.address.type, self.address.key
        if header.CHAIN in extra:
            # who may not host is believed no chain; agents that no worker hosts listen for plain asks alone
            with suppress(NoRespondersError):
                return await self._bus.request(subjects.call(kind, key), data, headers=extra, timeout_s=timeout_s)
        return await self._bus.request(subjects.ask(kind, key), data, headers=extra, timeout_s=timeout_s)


def no_host(address: Address) -> NoHostError:
    """Return the error for an actor whose type nobody hosts."""
    message = (
        f"no worker hosts {address.type!r}: start one with `callboard worker start FILE`, the file that has the actor "
        f"class; `callboard tell {address.type}/...` leaves a message that waits for it"
    )
    return NoHostError(message)


def timed_out(address: Address, timeout_s: float) -> AskTimeoutError:
    """Return the error for an answer that stayed away."""
    message = (
        f"{address} has not answered within {timeout_s:g} s; the question may still be handled. See what it does with "
        f"`callboard agents show`, or ask again under an idempotency key, which gets the stored answer"
    )
    return AskTimeoutError(message)


def _no_stream() -> NoRespondersError:
    return NoRespondersError("no stream takes mail: run 'callboard provision', or 'callboard up' for a local server")
