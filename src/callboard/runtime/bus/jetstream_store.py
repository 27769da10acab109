"""Stored subjects on JetStream: single writes, pipelines and atomic batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from callboard.runtime.bus import header
from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, MAX_BATCH, PubAck, ServerInfo, Write
from callboard.runtime.bus.check import check_headers, check_size, check_subject
from callboard.runtime.bus.jetstream_call import Call, Calls
from callboard.runtime.bus.jetstream_link import Link
from callboard.runtime.errors import BusError, BusTimeoutError, InputError, NoRespondersError
from callboard.runtime.ids import new_token

# What the three headers of a batch add at most: names, a 16-character id, four digits.
_BATCH_HEADERS_BYTES = 100
_AGAIN_S = 0.2


class Writer:
    """The writing part of the bus."""

    _link: Link
    _stores: Calls[PubAck]
    _server: ServerInfo

    async def store(self, write: Write, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store one message and wait for the broker's word. One round trip.

        Raises:
            NoRespondersError: If no stream takes the subject. In a cluster that is also what a stream without a leader
                looks like, so it is tried again until ``timeout_s`` is over; nothing was stored meanwhile.
        """
        self._check(write)
        clock = self._link.clock
        deadline = clock.monotonic() + timeout_s
        while True:
            try:
                repeats = self._repeats(write)
                ack, _ = await self._stores.one(write.subject, write.data, timeout_s, write.headers, repeats=repeats)
            except NoRespondersError:
                timeout_s = deadline - clock.monotonic() - _AGAIN_S
                if timeout_s <= 0 or not self._server.cluster:
                    raise
                await clock.sleep(_AGAIN_S)
            else:
                return ack

    async def store_many(
        self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[PubAck | BusError]:
        """Store each message on its own, pipelined. One round trip, one future and one timer, whatever the number.

        Raises:
            InputError: If one of them cannot be sent at all (size, header, subject); none is sent then.
        """
        if not writes:
            return []
        for write in writes:
            self._check(write)
        call = self._stores.open([write.subject for write in writes], timeout_s)
        send = self._link.send
        if any(map(self._repeats, writes)):
            call.again = partial(self._send_again, call, writes)
        try:
            for write, reply in zip(writes, self._stores.reply_subjects(call), strict=True):
                await send(write.subject, write.data, reply, write.headers)
        except BusError as error:
            # Those sent before keep their answers; the rest never left.
            call.fail(error)
        except BaseException:
            self._stores.forget(call)
            raise
        return [answer or _no_answer() for answer in await self._stores.wait(call)]

    async def store_batch(self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store 1 to 1,000 messages of one stream, all or none. One round trip.

        Raises:
            InputError: If there are none or too many, or one cannot be sent at all.
        """
        if not 1 <= len(writes) <= MAX_BATCH:
            message = f"a batch takes 1 to {MAX_BATCH} writes, this one has {len(writes)}: split it"
            raise InputError(message)
        for write in writes:
            self._check(write, more_bytes=_BATCH_HEADERS_BYTES)
        # Replies come to the first, when the server cannot begin a batch, and to the last; the rest ask for none.
        ends = [write.subject for write in writes]
        call = self._stores.open(ends, timeout_s, is_whole=True)
        first, last = self._stores.reply(call, 0), self._stores.reply(call, len(writes) - 1)
        if writes[0].again and self._server.cluster:
            call.again = partial(self._send_batch, writes, first, last)
        try:
            await self._send_batch(writes, first, last)
        except BaseException:
            self._stores.forget(call)
            raise
        answer = (await self._stores.wait(call))[-1]
        if isinstance(answer, BusError):
            raise answer
        return answer or _raise(_no_answer())

    def _repeats(self, write: Write) -> bool:
        """Whether to send it again while it is unanswered: the server knows a repeat by its id, or its sender does."""
        return bool(self._server.cluster) and (write.again or bool(write.headers and header.MSG_ID in write.headers))

    async def _send_again(self, call: Call[PubAck], writes: Sequence[Write]) -> None:
        replies = self._stores.reply_subjects(call)
        for index, write in enumerate(writes):
            if self._repeats(write) and self._stores.is_open(call, index):
                await self._link.send(write.subject, write.data, replies[index], write.headers)

    async def _send_batch(self, writes: Sequence[Write], first_reply: str, last_reply: str) -> None:
        send = self._link.send
        batch = new_token()
        last = len(writes) - 1
        for index, write in enumerate(writes):
            headers = dict(write.headers) if write.headers else {}
            headers[header.BATCH_ID] = batch
            headers[header.BATCH_SEQ] = str(index + 1)
            reply = first_reply if index == 0 else ""
            if index == last:
                headers[header.BATCH_COMMIT] = "1"
                reply = last_reply
            await send(write.subject, write.data, reply, headers)

    def _check(self, write: Write, *, more_bytes: int = 0) -> None:
        check_subject(write.subject)
        size_bytes = len(write.data) + more_bytes
        if write.headers:
            size_bytes += check_headers(write.headers)
        check_size(size_bytes, self._link.max_payload)


def _no_answer() -> BusTimeoutError:
    return BusTimeoutError("no answer; the outcome is unknown")


def _raise(error: BusError) -> PubAck:
    raise error
