"""Reading what streams hold: direct gets, folds over subjects, and whole streams in order."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime

from msgspec import json

from callboard.runtime.bus.base import Stored
from callboard.runtime.bus.check import check_filter, check_name
from callboard.runtime.bus.jetstream_admin import API_PREFIX, API_TIMEOUT_S
from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_link import DESCRIPTION, Link, Raw
from callboard.runtime.bus.jetstream_read import OrderedReader
from callboard.runtime.bus.jetstream_tail import StandingTail
from callboard.runtime.bus.jetstream_wire import Json, delivered_as_stored, to_stored, to_time
from callboard.runtime.bus.jetstream_work import Work
from callboard.runtime.bus.pattern import is_literal, matches
from callboard.runtime.errors import ApiError, BusError, NoRespondersError, NotFoundError, PermissionDeniedError

_SUBJECTS_A_REQUEST = 500
_REOPEN_S = 0.5
_POLL_S = 0.5
_NOT_FOUND = "404"
_TOO_MANY = "413"
_END = "204"
_UNAVAILABLE = 503
_REPLICAS_S = 10.0


class Reader(Work):
    """The reading part of the bus."""

    _link: Link
    _gets: Calls[Raw]
    _replicas: dict[str, tuple[int, float]]

    # --- single messages

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:
        """Return the last message on ``subject`` or None. One direct get, or one request to the leader.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        check_name(stream, what="stream")
        check_filter(subject)
        ask: Json = {"last_by_subj": subject}
        if from_leader and await self._has_followers(stream):
            return await self._get_from_leader(stream, ask)
        if is_literal(subject):
            # The subject in the subject lets permissions tell one reader's subjects from another's.
            return await self._get(stream, ask, f"{API_PREFIX}DIRECT.GET.{stream}.{subject}", b"")
        return await self._get(stream, ask)

    async def get_seq(self, stream: str, seq: int, *, from_leader: bool = False) -> Stored | None:
        """Return the message with this sequence or None. One direct get, or one request to the leader."""
        if seq <= 0:
            return None
        if from_leader and await self._has_followers(stream):
            return await self._get_from_leader(stream, {"seq": seq})
        return await self._get(stream, {"seq": seq})

    async def get_next(self, stream: str, seq: int, subject: str, *, from_leader: bool = False) -> Stored | None:
        """Return the first message on ``subject`` with a sequence of at least ``seq``, or None; cost as ``get_seq``."""
        check_filter(subject)
        ask: Json = {"seq": max(1, seq), "next_by_subj": subject}
        if from_leader and await self._has_followers(stream):
            return await self._get_from_leader(stream, ask)
        return await self._get(stream, ask)

    async def _get(self, stream: str, ask: Json, subject: str = "", data: bytes | None = None) -> Stored | None:
        check_name(stream, what="stream")
        subject = subject or f"{API_PREFIX}DIRECT.GET.{stream}"
        try:
            body = json.encode(ask) if data is None else data
            raw, _ = await self._api_calls.one(subject, body, API_TIMEOUT_S, repeats=bool(self._server.cluster))
        except NoRespondersError:
            # Direct gets are off for this stream, or it does not exist: its leader tells.
            return await self._get_from_leader(stream, ask)
        if not raw.status:
            return to_stored(raw)
        if raw.status == _NOT_FOUND:
            return None
        raise _refused(stream, raw)

    async def _get_from_leader(self, stream: str, ask: Json) -> Stored | None:
        try:
            answer = await self._api(f"STREAM.MSG.GET.{stream}", ask)
        except NotFoundError:
            await self._check_exists(stream)
            return None
        return _to_stored(stream, answer)

    async def _check_exists(self, stream: str) -> None:
        if await self._stream(stream) is None:
            message = f"stream {stream} does not exist"
            raise NotFoundError(message) from None

    async def _has_followers(self, stream: str) -> bool:
        """Return whether a direct get may be answered by another server than the stream's leader.

        One request the first time; a single server may get followers, so that answer is asked for again in time.
        """
        now = self._link.clock.monotonic()
        replicas, looked_at = self._replicas.get(stream, (0, 0.0))
        if replicas == 0 or (replicas == 1 and now - looked_at > _REPLICAS_S):
            try:
                info = await self.stream_info(stream)
            except PermissionDeniedError:
                # Who may not look asks the leader, which is always right.
                return True
            replicas = info.config.replicas if info is not None else 0
            self._replicas[stream] = (replicas, now)
        return replicas > 1

    # --- the last of many subjects

    async def get_many(self, stream: str, subjects: Sequence[str], *, from_leader: bool = False) -> list[Stored]:
        """Return the last message of every subject that matches one of ``subjects``, by sequence.

        One request per 500 subjects; one more for each wildcard that stands for more than 1,024. From the leader one
        request a subject, pipelined, and one before for each wildcard.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        check_name(stream, what="stream")
        for subject in subjects:
            check_filter(subject)
        get = self._get_part
        if from_leader and await self._has_followers(stream):
            get = self._get_part_from_leader
        found: dict[str, Stored] = {}
        for part in _parts(subjects):
            for stored in await get(stream, part):
                found[stored.subject] = stored
        return sorted(found.values(), key=lambda stored: stored.seq)

    async def _get_part(self, stream: str, subjects: list[str]) -> list[Stored]:
        try:
            return await self._get_pages(stream, subjects)
        except _TooManyError:
            # The server answers for 1,024 subjects at most, so wildcards are spelled out.
            pages = [await self._get_pages(stream, part) for part in _parts(await self._spelled(stream, subjects))]
            return [stored for page in pages for stored in page]
        except NoRespondersError:
            singles = [await self.get_last(stream, subject) for subject in await self._spelled(stream, subjects)]
            return [stored for stored in singles if stored is not None]

    async def _get_part_from_leader(self, stream: str, subjects: list[str]) -> list[Stored]:
        path = f"STREAM.MSG.GET.{stream}"
        asks: list[Json] = [{"last_by_subj": subject} for subject in await self._spelled(stream, subjects)]
        answers = await self._api_many(path, asks)
        found = [answer for answer in answers if not isinstance(answer, NotFoundError)]
        if not found and answers:
            await self._check_exists(stream)
        return [_to_stored(stream, answer) for answer in found]

    async def _get_pages(self, stream: str, subjects: list[str]) -> list[Stored]:
        """Ask until the server has sent all: it stops at a size of its own."""
        ask: Json = {"multi_last": subjects}
        found: list[Stored] = []
        while True:
            end, parts = await self._gets.one(f"{API_PREFIX}DIRECT.GET.{stream}", json.encode(ask), API_TIMEOUT_S)
            found += map(to_stored, parts)
            if end.status == _NOT_FOUND:
                return found
            if end.status == _TOO_MANY:
                raise _TooManyError
            if end.status != _END:
                raise _refused(stream, end)
            headers = end.headers or {}
            if not parts or headers.get("Nats-Num-Pending", "0") == "0":
                return found
            ask |= {"seq": found[-1].seq + 1, "up_to_seq": int(headers["Nats-UpTo-Sequence"])}

    async def _spelled(self, stream: str, subjects: list[str]) -> list[str]:
        names = {subject for subject in subjects if is_literal(subject)}
        for subject in subjects:
            if not is_literal(subject):
                names |= set(await self.subject_counts(stream, subject))
        return sorted(names)

    # --- whole streams

    async def read(
        self,
        stream: str,
        *,
        subjects: Sequence[str] = (),
        start_seq: int | None = None,
        start_time: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Stored]:
        """Read a stream in order, without gaps across reconnects, to the end it had when called or on (``follow``).

        Two round trips to begin; then 256 messages ahead of the caller. A work queue, which suffers no second
        consumer, is read one direct get a message.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        for subject in subjects:
            check_filter(subject)
        info = await self.stream_info(stream)
        if info is None:
            message = f"stream {stream} does not exist"
            raise NotFoundError(message)
        end_seq = None if follow else info.last_seq
        if end_seq is not None and (not info.messages or (start_seq or 0) > end_seq):
            return
        if info.config.retention == "workqueue":
            steps = self._step(stream, subjects, start_seq or 1, start_time, end_seq)
        else:
            steps = self._follow(stream, subjects, start_seq, start_time, end_seq)
        async with aclosing(steps):
            async for stored in steps:
                yield stored

    async def _follow(
        self,
        stream: str,
        subjects: Sequence[str],
        start_seq: int | None,
        start_time: datetime | None,
        end_seq: int | None,
    ) -> AsyncGenerator[Stored, None]:
        is_first = True
        while True:
            reader = OrderedReader(self, self._link, stream, subjects)
            try:
                waiting = await self._opened(reader, start_seq, start_time, is_first=is_first)
                is_first = False
                while waiting or end_seq is None:
                    arrived = await reader.batch()
                    if reader.is_broken and not arrived:
                        break
                    if not arrived and end_seq is not None and await reader.is_dry():
                        return
                    for delivery in arrived:
                        if end_seq is not None and delivery.seq > end_seq:
                            return
                        yield delivered_as_stored(delivery)
                        start_seq = delivery.seq + 1
                        if end_seq is not None and (delivery.seq >= end_seq or not delivery.pending):
                            return
                    if arrived:
                        reader.taken(len(arrived))
                else:
                    return
            finally:
                await reader.close()
            if not reader.was_heard:
                await self._link.clock.sleep(_REOPEN_S)

    async def _opened(
        self, reader: OrderedReader, start_seq: int | None, start_time: datetime | None, *, is_first: bool
    ) -> int:
        while True:
            try:
                return await reader.open(start_seq=start_seq, start_time=start_time)
            except BusError as error:
                # The server is away, starting or without a leader. Who has begun already waits for the rest.
                is_passing = error.retryable or (isinstance(error, ApiError) and error.status == _UNAVAILABLE)
                if is_first or not is_passing:
                    raise
            await self._link.clock.sleep(_REOPEN_S)

    async def _step(
        self, stream: str, subjects: Sequence[str], seq: int, start_time: datetime | None, end_seq: int | None
    ) -> AsyncGenerator[Stored, None]:
        single = subjects[0] if len(subjects) == 1 else ">"
        while end_seq is None or seq <= end_seq:
            stored = await self.get_next(stream, seq, single)
            if stored is None or (end_seq is not None and stored.seq > end_seq):
                if end_seq is not None:
                    return
                await self._link.clock.sleep(_POLL_S)
                continue
            seq = stored.seq + 1
            is_wanted = not subjects or any(matches(subject, stored.subject) for subject in subjects)
            if is_wanted and (start_time is None or stored.time >= start_time):
                yield stored

    async def tail(
        self,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],
        *,
        start_seq: int,
        on_gap: Callable[[str], None] | None = None,
    ) -> StandingTail:
        """Hear every stored message on ``subject`` from ``start_seq`` on. One round trip, two when nothing waits.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        check_name(stream, what="stream")
        check_filter(subject)
        tail = StandingTail(
            self, self._link, stream=stream, subject=subject, sink=sink, on_gap=on_gap, start_seq=start_seq
        )
        await tail.start()
        return tail


class _TooManyError(Exception):
    """More subjects match than the server answers for."""


def ends(raw: Raw, _subject: str) -> Raw | None:
    """Return the message that ends a series, None for those before it."""
    return raw if raw.status else None


def _parts(subjects: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(subjects), _SUBJECTS_A_REQUEST):
        yield list(subjects[start : start + _SUBJECTS_A_REQUEST])


def _refused(stream: str, raw: Raw) -> BusError:
    text = (raw.headers or {}).get(DESCRIPTION, "")
    return BusError(f"stream {stream}: direct get refused: {raw.status} {text}".strip())


def _to_stored(stream: str, answer: Json) -> Stored:
    body = answer["message"]
    time = to_time(body["time"])
    if time is None:
        message = f"stream {stream}: message {body['seq']} has no time"
        raise BusError(message)
    headers = _to_headers(b64decode(body.get("hdrs") or ""))
    return Stored(body["subject"], b64decode(body.get("data") or ""), body["seq"], time, headers)


def _to_headers(block: bytes) -> dict[str, str] | None:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip(): value.strip() for name, _, value in pairs} or None
