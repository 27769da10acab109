"""Calls that wait for answers: one subscription for all, numbered replies, one future for all messages of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.jetstream_link import NO_RESPONDERS, Link, Listener, Raw
from callboard.runtime.errors import (
    BusClosedError,
    BusError,
    BusTimeoutError,
    NoRespondersError,
    PermissionDeniedError,
)

A = TypeVar("A")

# A call that may be repeated is after so long without an answer, in a cluster: an election takes seconds, and what was
# sent before its end is lost.
AGAIN_S = 0.7


class Call(Generic[A]):
    """Answers awaited together.

    Attributes:
        first: Number of its first reply subject; the others follow.
        subjects: What was asked, for error texts and for matching refusals.
        answers: What came, by position.
        is_whole: The last answer, or any refusal, answers all of it.
        asked_s: When it was made, in monotonic seconds.
        again: Sends once more what is unanswered; None for a call that must not be repeated.
        again_s: When that was done last, or the call was made.
    """

    __slots__ = (
        "again",
        "again_s",
        "answers",
        "asked_s",
        "done",
        "first",
        "is_whole",
        "missing",
        "parts",
        "subjects",
        "timer",
    )

    def __init__(self, first: int, subjects: Sequence[str], done: asyncio.Future[None], *, is_whole: bool) -> None:
        self.first = first
        self.subjects = subjects
        self.answers: list[A | BusError | None] = [None] * len(subjects)
        self.missing = len(subjects)
        self.parts: list[Raw] = []
        self.is_whole = is_whole
        self.done = done
        self.timer: asyncio.TimerHandle | None = None
        self.asked_s = self.again_s = 0.0
        self.again: Callable[[], Coroutine[Any, Any, None]] | None = None

    def put(self, index: int, answer: A | BusError | None) -> None:
        """Take the answer at one position."""
        if self.is_whole:
            is_last = index == len(self.answers) - 1
            self.answers[-1] = answer
            self.missing = 0 if is_last or isinstance(answer, BusError) else 1
        else:
            self.answers[index] = answer
            self.missing -= 1
        if not self.missing:
            self.finish()

    def fail(self, error: BusError) -> None:
        """Give every position without an answer this one."""
        for index, answer in enumerate(self.answers):
            if answer is None:
                self.answers[index] = error
        self.finish()

    def finish(self) -> None:
        """Wake the caller."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.done.done():
            self.done.set_result(None)


class Calls(Generic[A]):
    """All open calls of one kind, behind one wildcard subscription.

    Args:
        link: The connection.
        kind: A token of the reply subjects.
        decode: Makes the answer to ``subject`` from what came; None means that more will come.
        is_jetstream: Whether silence says something about JetStream.
        proves: What an answer says: True that the server reaches a leader and that one a majority, False that it does
            not, None neither. A server that is cut off from its peers answers direct gets from its own copy, questions
            about streams with what it last knew, and, as the leader it thinks it is, with refusals.
    """

    def __init__(
        self,
        link: Link,
        kind: str,
        decode: Callable[[Raw, str], A | BusError | None],
        *,
        is_jetstream: bool,
        proves: Callable[[A | BusError | None], bool | None] | None = None,
    ) -> None:
        self._link = link
        self._decode = decode
        self._is_jetstream = is_jetstream
        self._proves = proves
        self.prefix = f"{link.base}.{kind}."
        self._start = len(self.prefix)
        self._next = 1
        self._open: dict[int, Call[A]] = {}
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Subscribe; once, before the first call."""
        self._listener = await self._link.listen(f"{self.prefix}*", self._deliver)
        self._link.attach(self)

    def waiting_since(self) -> float | None:
        """Return when the oldest open call was made, in monotonic seconds, or None; only of calls to JetStream."""
        return next(iter(self._open.values())).asked_s if self._is_jetstream and self._open else None

    def open(self, subjects: Sequence[str], timeout_s: float, *, is_whole: bool = False) -> Call[A]:
        """Begin a call; the reply subject of position ``i`` is ``reply(call, i)``."""
        first = self._next
        self._next = first + len(subjects)
        call: Call[A] = Call(first, subjects, self._link.loop.create_future(), is_whole=is_whole)
        call.asked_s = call.again_s = self._link.clock.monotonic()
        if not subjects:
            # nobody owes an answer
            call.finish()
            return call
        call.timer = self._link.loop.call_later(timeout_s, self._expire, call, timeout_s)
        for number in range(first, self._next):
            self._open[number] = call
        return call

    def reply(self, call: Call[A], index: int) -> str:
        """Return the reply subject for one position of ``call``."""
        return f"{self.prefix}{call.first + index}"

    def reply_subjects(self, call: Call[A]) -> list[str]:
        """Return the reply subjects of ``call`` by position."""
        prefix = self.prefix
        return [f"{prefix}{number}" for number in range(call.first, call.first + len(call.subjects))]

    async def wait(self, call: Call[A]) -> list[A | BusError | None]:
        """Wait until each position has an answer, be it a timeout."""
        try:
            await call.done
        finally:
            self.forget(call)
        return call.answers

    async def one(
        self, subject: str, data: bytes, timeout_s: float, headers: Headers | None = None, *, repeats: bool = False
    ) -> tuple[A, list[Raw]]:
        """Send one request; return its answer and the parts that came before it. ``repeats``: see ``Call.again``.

        Raises:
            BusError: If it was refused or stayed unanswered.
        """
        call = self.open((subject,), timeout_s)
        reply = f"{self.prefix}{call.first}"
        if repeats:
            call.again = partial(self._again, subject, data, reply, headers)
        try:
            await self._link.send(subject, data, reply, headers)
        except BaseException:
            self.forget(call)
            raise
        (answer,) = await self.wait(call)
        if isinstance(answer, BusError):
            raise answer
        if answer is None:
            # Only a call that is failed without an error gets here, and nothing does that.
            message = f"{subject}: no answer"
            raise BusTimeoutError(message)
        return answer, call.parts

    async def _again(self, subject: str, data: bytes, reply: str, headers: Headers | None) -> None:
        await self._link.send(subject, data, reply, headers)

    def forget(self, call: Call[A]) -> None:
        """Take no more answers for ``call``."""
        if call.timer is not None:
            call.timer.cancel()
        if call.missing or call.is_whole:
            for number in range(call.first, call.first + len(call.subjects)):
                self._open.pop(number, None)

    def close(self) -> None:
        """Answer every waiter; nothing more will come."""
        self._fail_all(BusClosedError("the bus was closed before the answer came; the outcome is unknown"))

    # --- as a part of the link

    def went_down(self) -> None:
        """Answer every waiter now: what they asked may or may not have arrived."""
        self._fail_all(BusTimeoutError("connection lost; the outcome is unknown"))

    def came_up(self) -> None:
        """Nothing to do: the listener was replayed."""

    def tick(self, now: float) -> None:
        """Repeat what has been unanswered for long: what a stream without a leader is sent is lost."""
        if not self._link.is_up:
            return
        for call in {id(call): call for call in self._open.values() if call.again is not None}.values():
            if now - call.again_s >= AGAIN_S and call.again is not None:
                call.again_s = now
                self._link.spawn(call.again(), "call-again")

    def is_open(self, call: Call[A], index: int) -> bool:
        """Return whether one position of a call is unanswered."""
        return call.first + index in self._open

    def denied(self, subject: str, message: str) -> None:
        """Fail the calls that asked on ``subject``."""
        for number, call in list(self._open.items()):
            index = number - call.first
            asked = call.subjects if call.is_whole else call.subjects[index : index + 1]
            for name in asked:
                if name.lower() == subject and number in self._open:
                    del self._open[number]
                    # the server names it in lower case
                    call.put(index, PermissionDeniedError(message.replace(subject, name), subject=name))

    # --- answers

    def _deliver(self, raw: Raw) -> None:
        number = int(raw.subject[self._start :])
        call = self._open.get(number)
        if call is None:
            return
        index = number - call.first
        answer: A | BusError | None
        if raw.headers is not None and not raw.data and raw.status == NO_RESPONDERS:
            answer = NoRespondersError(f"nobody takes {call.subjects[index]!r}: no listener and no stream has it")
        else:
            answer = self._decode(raw, call.subjects[index])
            if self._proves is not None and (is_leader := self._proves(answer)) is not None:
                self._link.answered(is_leader=is_leader)
            if answer is None and not call.is_whole:
                call.parts.append(raw)
                return
        del self._open[number]
        call.put(index, answer)

    def _expire(self, call: Call[A], timeout_s: float) -> None:
        if self._is_jetstream and self._link.is_up:
            self._link.unanswered()
        what = call.subjects[0] if len(call.subjects) == 1 else f"{call.missing} of {len(call.subjects)} messages"
        call.fail(BusTimeoutError(f"{what}: no answer within {timeout_s:g} s; the outcome is unknown"))

    def _fail_all(self, error: BusError) -> None:
        calls = {id(call): call for call in self._open.values()}
        self._open.clear()
        for call in calls.values():
            # Each caller gets an error of its own: a raised one keeps its traceback.
            call.fail(type(error)(*error.args))
