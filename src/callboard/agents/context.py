"""Shared context: small values that agents, runs and people share, each with its history. A bucket, ``CB_CONTEXT``.

A scope is ``global``, ``run/<id>`` or ``private/<type>/<key>`` of one agent. A key is words joined by dots, as in
``plan.title``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from msgspec import Raw, Struct

from callboard.runtime import codec, subjects
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.span import span_s
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored, Write
from callboard.runtime.bus.kv import MARKER_REASON, OPERATION
from callboard.runtime.bus.topology import CONTEXT
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import ConflictError, DecodeError, InputError, InvalidNameError, PayloadTooLargeError

GLOBAL = "global"
RUN = "run"
PRIVATE = "private"
PREFIX = "$KV.CB_CONTEXT."
MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 256 * 1024
# One batch of the broker.
MAX_UPDATE = 1000
EXPIRED = "expired"
"""Who deleted a value whose time was over."""

_CAS_TRIES = 200
_CAS_PAUSE_S = 0.005


class Entry(Struct, frozen=True, kw_only=True):
    """A value as it stands.

    Attributes:
        revision: Its number in the bucket; grows with every change of anything. What ``expected`` takes.
        by: Who wrote it.
        at: When.
        expires_at: When it is gone; None: never.
    """

    key: str
    value: Any
    revision: int
    by: str
    at: datetime
    expires_at: datetime | None = None


class Change(Struct, frozen=True, kw_only=True):
    """One step of a key's history.

    Attributes:
        old: The value before; None when there was none, or it is not known any more.
        new: The value after; None for a deletion.
        is_first: Whether nothing before it is known.
    """

    key: str
    revision: int
    by: str
    at: datetime
    old: Any = None
    new: Any = None
    is_deleted: bool = False
    is_first: bool = False


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands in the bucket, as JSON. A deletion has no value, and a header as NATS clients set it.

    Attributes:
        op: The write's own name, by which whoever repeats it knows that it stands already.
    """

    by: str
    value: Raw = Raw(b"null")
    expires_at: datetime | None = None
    op: str = ""


class Context:
    """One scope of the shared context, from outside of turns. Holds nothing and needs no closing."""

    def __init__(self, bus: Bus, *, scope: str = GLOBAL, by: str, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use a scope.

        Args:
            bus: The connection; not owned.
            scope: ``global``, ``run/<id>`` or ``private/<type>/<key>``.
            by: Who writes, for the history.
            clock: Time.

        Raises:
            InvalidNameError: If there is no such scope.
        """
        self.scope = scope
        self._bus = bus
        self._by = by
        self._clock = clock
        self._prefix = PREFIX + scope_tokens(scope) + "."

    # --- reading

    async def entry(self, key: str) -> Entry | None:
        """Return what stands under a key, None when there is nothing or its time is over. One direct get.

        Raises:
            InvalidNameError: If the key cannot be used.
            PermissionDeniedError: If the server refuses the scope to this user.
        """
        found = await self._last(key)
        return None if found is None else self._alive(found)

    async def get(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - whatever stands there
        """Return a value, ``default`` when there is none. One direct get; it may be a moment old.

        Raises:
            InvalidNameError: If the key cannot be used.
        """
        found = await self.entry(key)
        return default if found is None else found.value

    async def ls(self, prefix: str = "") -> dict[str, Entry]:
        """Return what stands below a prefix, by key. Reads all their revisions.

        Raises:
            InvalidNameError: If the prefix cannot be used.
        """
        last: dict[str, Stored] = {}
        async for stored in self._bus.read(CONTEXT, subjects=(self._filter(prefix),)):
            last[stored.subject] = stored
        found = (self._alive(stored) for stored in last.values())
        return {each.key: each for each in sorted(filter(None, found), key=_key) if each.key.startswith(prefix)}

    async def history(self, key: str) -> list[Change]:
        """Return the changes of a key, oldest first: the last 64, or as many as the bucket keeps.

        Raises:
            InvalidNameError: If the key cannot be used.
        """
        return [change async for change in self._changes((self._subject(key),), known={}, follow=False)]

    async def watch(self, prefix: str = "", *, from_start: bool = False) -> AsyncIterator[Change]:
        """Iterate over the changes below a prefix, from now on or from the oldest that is kept, and for ever.

        None is left out over a lost connection, as long as no key changes more often meanwhile than its history is
        deep. A value whose time is over changes when it is swept.

        Raises:
            InvalidNameError: If the prefix cannot be used.
            NotFoundError: If there is no shared context: `callboard provision`.
        """
        known: dict[str, Any] = {}
        start_seq = None
        if not from_start:
            info = await self._bus.stream_info(CONTEXT)
            start_seq = 1 if info is None else info.last_seq + 1
            # what was written since comes as a change
            standing = (await self.ls(prefix)).items()
            known = {key: found.value for key, found in standing if found.revision < start_seq}
        filters = (self._filter(prefix),)
        async for change in self._changes(filters, known=known, follow=True, start_seq=start_seq):
            if change.key.startswith(prefix):
                yield change

    # --- writing

    async def set(
        self,
        key: str,
        value: object,
        *,
        ttl: str | float | None = None,
        expected: int | None = None,
        op: str = "",
    ) -> int:
        """Write a value; return its revision. One round trip.

        Args:
            key: Words joined by dots.
            value: Anything with a JSON form, at most 256 KiB.
            ttl: How long it stands, ``"2h"`` or seconds; default: for ever.
            expected: Write only if this revision stands; 0: only if nothing does.
            op: A name of this very write; see ``was_done``.

        Raises:
            ConflictError: If another revision stands; ``last_seq`` is its number where the broker said it.
            EncodeError: If the value has no JSON form.
            InvalidNameError: If the key cannot be used.
            PayloadTooLargeError: If it is too large: store it elsewhere and share its name.
        """
        data = self._encode(value, ttl, op)
        if expected == 0:
            # what is gone in fact may still have a marker, or a time that is over
            expected = await self._free(key)
        return await self._write(key, data, expected=expected)

    async def update(self, values: Mapping[str, object], *, ttl: str | float | None = None, op: str = "") -> int:
        """Write several values, all or none; return the last revision. One round trip, at most 1,000 values.

        Raises:
            EncodeError: If a value has no JSON form.
            InputError: If there are too many.
            InvalidNameError: If a key cannot be used.
        """
        if not 0 < len(values) <= MAX_UPDATE:
            message = f"an update takes 1 to {MAX_UPDATE} values, this one has {len(values)}"
            raise InputError(message)
        writes = [Write(self._subject(key), self._encode(value, ttl, op)) for key, value in values.items()]
        return (await self._bus.store_batch(writes)).seq

    async def delete(self, key: str, *, expected: int | None = None, op: str = "") -> bool:
        """Delete a value; its history stays. False when there was none. Two round trips.

        Raises:
            ConflictError: If ``expected`` does not stand.
            InvalidNameError: If the key cannot be used.
        """
        if await self._last(key) is None:
            return False
        data = _encoded(Record(by=self._by, op=op))
        _ = await self._write(key, data, expected=expected, extra={OPERATION: "DEL"})
        return True

    async def clear(self, prefix: str = "") -> int:
        """Delete everything below a prefix; return how many. What is written meanwhile may stay.

        Raises:
            InvalidNameError: If the prefix cannot be used.
        """
        keys = list(await self.ls(prefix))
        data = _encoded(Record(by=self._by))
        writes = [Write(self._subject(key), data, {OPERATION: "DEL"}) for key in keys]
        for part in (writes[at : at + MAX_UPDATE] for at in range(0, len(writes), MAX_UPDATE)):
            _ = await self._bus.store_batch(part)
        return len(keys)

    async def increment(self, key: str, amount: int = 1, *, op: str = "") -> int:
        """Add to a whole number, which begins at 0; return the sum. Atomic: two round trips, more when others add too.

        Raises:
            InputError: If something else than a whole number stands there.
            ConflictError: If others were faster 200 times in a row.
            InvalidNameError: If the key cannot be used.
        """
        for _ in range(_CAS_TRIES):
            stored = await self._bus.get_last(CONTEXT, self._subject(key))
            found = None if stored is None else self._alive(stored)
            value = 0 if found is None else found.value
            if not isinstance(value, int) or isinstance(value, bool):
                message = f"{self.scope}: {key} holds no whole number: nothing can be added to it"
                raise InputError(message)
            until = None if found is None else found.expires_at
            record = Record(by=self._by, value=Raw(codec.encode(value + amount)), expires_at=until, op=op)
            try:
                _ = await self._write(key, _encoded(record), expected=0 if stored is None else stored.seq)
            except ConflictError:
                await self._clock.sleep(_CAS_PAUSE_S)
                continue
            return value + amount
        message = f"{self.scope}: {key} keeps changing; try again"
        raise ConflictError(message)

    async def was_done(self, key: str, op: str) -> Entry | None:
        """Return what a write of this name left, None when it never was, or lies deeper than the history.

        For whoever repeats a write after a crash. Reads the key's revisions.

        Raises:
            InvalidNameError: If the key cannot be used.
        """
        async for stored in self._bus.read(CONTEXT, subjects=(self._subject(key),)):
            record = _decoded(stored)
            if record is not None and record.op == op:
                return self._entry(stored, record)
        return None

    # --- inside

    async def _changes(
        self, filters: tuple[str, ...], *, known: dict[str, Any], follow: bool, start_seq: int | None = None
    ) -> AsyncIterator[Change]:
        async for stored in self._bus.read(CONTEXT, subjects=filters, start_seq=start_seq, follow=follow):
            key = _key_of(stored.subject.removeprefix(self._prefix))
            record = _decoded(stored)
            is_deleted = _is_marker(stored)
            new = None if record is None or is_deleted else msgspec.json.decode(record.value)
            yield Change(
                key=key,
                revision=stored.seq,
                by="" if record is None else record.by,
                at=stored.time,
                old=known.get(key),
                new=new,
                is_deleted=is_deleted,
                is_first=key not in known,
            )
            known[key] = new

    async def _last(self, key: str) -> Stored | None:
        """Return what stands under a key, without deletions."""
        stored = await self._bus.get_last(CONTEXT, self._subject(key))
        return None if stored is None or _is_marker(stored) else stored

    async def _free(self, key: str) -> int:
        """Return the revision that a key without a value has."""
        stored = await self._bus.get_last(CONTEXT, self._subject(key))
        if stored is not None and self._alive(stored) is not None:
            message = f"{self.scope}: {key} has a value at revision {stored.seq}"
            raise ConflictError(message, last_seq=stored.seq)
        return 0 if stored is None else stored.seq

    def _alive(self, stored: Stored) -> Entry | None:
        record = None if _is_marker(stored) else _decoded(stored)
        if record is None or (record.expires_at is not None and self._clock.now() >= record.expires_at):
            return None
        return self._entry(stored, record)

    def _entry(self, stored: Stored, record: Record) -> Entry:
        return Entry(
            key=_key_of(stored.subject.removeprefix(self._prefix)),
            value=msgspec.json.decode(record.value),
            revision=stored.seq,
            by=record.by,
            at=stored.time,
            expires_at=record.expires_at,
        )

    def _encode(self, value: object, ttl: str | float | None, op: str) -> bytes:
        until = None if ttl is None else self._clock.now() + timedelta(seconds=span_s(ttl))
        data = codec.encode(value)
        if len(data) > MAX_VALUE_BYTES:
            message = (
                f"a shared value takes at most {MAX_VALUE_BYTES} bytes, this one has {len(data)}: keep it in a file or "
                f"an object and share its name"
            )
            raise PayloadTooLargeError(message, size_bytes=len(data), limit_bytes=MAX_VALUE_BYTES)
        return _encoded(Record(by=self._by, value=Raw(data), expires_at=until, op=op))

    async def _write(
        self, key: str, data: bytes, *, expected: int | None, extra: Mapping[str, str] | None = None
    ) -> int:
        write = Write(self._subject(key), data, header.build(expected_seq=expected, extra=extra))
        try:
            return (await self._bus.store(write)).seq
        except ConflictError as error:
            message = f"{self.scope}: {key} was changed: revision {error.last_seq or '?'} stands, not {expected}"
            raise ConflictError(message, last_seq=error.last_seq) from error

    def _subject(self, key: str) -> str:
        return self._prefix + _key_tokens(key)

    def _filter(self, prefix: str) -> str:
        whole, dot, _ = prefix.rpartition(".")
        return f"{self._prefix}{_key_tokens(whole) + '.' if dot else ''}>"


def scope_tokens(scope: str) -> str:
    """Return a scope as tokens of a key in the bucket.

    Raises:
        InvalidNameError: If there is no such scope.
    """
    kind, _, rest = scope.partition("/")
    if kind == GLOBAL and not rest:
        return GLOBAL
    if kind == RUN and rest:
        return f"{RUN}.{_token(rest)}"
    if kind == PRIVATE and rest:
        address = parse(rest)
        return f"{PRIVATE}.{address.type}.{_token(address.key)}"
    message = f"scope {scope[:80]!r} does not exist: take global, run/<id> or private/<type>/<key>"
    raise InvalidNameError(message, name=scope[:80])


async def sweep(bus: Bus, kind: str = GLOBAL, *, clock: Clock = SYSTEM_CLOCK) -> int:
    """Delete the values whose time is over; return how many. Readers do not see them before either.

    Args:
        bus: The connection.
        kind: ``global``, ``run`` or ``private``: all scopes of that kind.
        clock: Time.

    Raises:
        PermissionDeniedError: If this user may not see all of them.
    """
    last: dict[str, Stored] = {}
    async for stored in bus.read(CONTEXT, subjects=(f"{PREFIX}{kind}.>",)):
        last[stored.subject] = stored
    return sum([await _swept(bus, stored, now=clock.now()) for stored in last.values()])


async def _swept(bus: Bus, stored: Stored, *, now: datetime) -> int:
    record = None if _is_marker(stored) else _decoded(stored)
    if record is None or record.expires_at is None or now < record.expires_at:
        return 0
    headers = header.build(expected_seq=stored.seq, extra={OPERATION: "DEL"})
    try:
        _ = await bus.store(Write(stored.subject, _encoded(Record(by=EXPIRED)), headers))
    except ConflictError:
        # written anew meanwhile
        return 0
    return 1


def _key_tokens(key: str) -> str:
    size = len(key.encode(errors="replace"))
    if not 0 < size <= MAX_KEY_BYTES or not all(key.split(".")):
        message = f"key {key[:80]!r} cannot be used: take words joined by single dots, {MAX_KEY_BYTES} bytes at most"
        raise InvalidNameError(message, name=key[:80])
    return ".".join(_token(word) for word in key.split("."))


def _key_of(tokens: str) -> str:
    return unquote(tokens.replace("=", "%"))


def _token(word: str) -> str:
    """Return a word as one token of a bucket's key: ``=XX`` for every byte but ``A-Z a-z 0-9 - _``."""
    _ = subjects.escape(word)
    return quote(word, safe="-_").replace("~", "%7E").replace(".", "%2E").replace("%", "=")


def _is_marker(stored: Stored) -> bool:
    headers = stored.headers or {}
    return headers.get(OPERATION, "") in ("DEL", "PURGE") or MARKER_REASON in headers


def _decoded(stored: Stored) -> Record | None:
    """Return what a revision says; None for a deletion by another tool.

    Raises:
        DecodeError: If another tool wrote what cannot be understood.
    """
    if not stored.data and _is_marker(stored):
        return None
    try:
        return msgspec.json.decode(stored.data, type=Record)
    except msgspec.DecodeError as error:
        message = f"{stored.subject} at revision {stored.seq} is no value of the shared context: {error}"
        raise DecodeError(message) from error


def _key(found: Entry) -> str:
    return found.key


def _encoded(record: Record) -> bytes:
    # its value is JSON already
    return msgspec.json.encode(record)
