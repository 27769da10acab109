"""A stream of the in-memory broker: its messages, limits, dedup window, expiry, schedules and copies from others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

from callboard.runtime.bus import header, memory_admission, memory_record
from callboard.runtime.bus.base import PubAck, StreamConfig, StreamInfo, Write
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.memory_consumer import MemoryConsumer
from callboard.runtime.bus.memory_record import Record
from callboard.runtime.bus.memory_timer import SLACK_S, Timers
from callboard.runtime.bus.pattern import Transform, is_literal, matches
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError, ConflictError

# The real broker looks at its schedules a few times a second; a refused firing is tried again at this pace.
_REFUSED_FIRING_S = 1.0


class MemoryStream:
    """Messages in order of sequence, with an index by subject."""

    def __init__(self, config: StreamConfig, *, clock: Clock, timers: Timers) -> None:
        """Start empty; ``config`` is taken as already checked."""
        self.config = config
        self.last_seq = 0
        self.size_bytes = 0
        self.consumers: dict[str, MemoryConsumer] = {}
        self.copiers: list[MemoryStream] = []
        self.on_append: list[Callable[[], None]] = []
        self._clock = clock
        self._timers = timers
        self._records: dict[int, Record] = {}
        self._order: list[int] = []
        self._subjects: dict[str, list[int]] = {}
        self._msg_ids: dict[str, tuple[float, int]] = {}
        self._copied: dict[str, int] = {}
        self._transform = Transform(*config.subject_transform) if config.subject_transform else None
        self._age_check_at: float | None = None

    # --- state

    @property
    def name(self) -> str:
        """Name of the stream."""
        return self.config.name

    @property
    def is_workqueue(self) -> bool:
        """Whether a settled message is removed."""
        return self.config.retention == "workqueue"

    @property
    def messages(self) -> int:
        """Messages it holds."""
        return len(self._order)

    @property
    def first_seq(self) -> int:
        """Sequence of the first message; one past the last when empty, 0 when nothing was ever stored."""
        if self._order:
            return self._order[0]
        return self.last_seq + 1 if self.last_seq else 0

    def info(self) -> StreamInfo:
        """Return settings and state."""
        return StreamInfo(
            config=self.config,
            messages=self.messages,
            size_bytes=self.size_bytes,
            first_seq=self.first_seq,
            last_seq=self.last_seq,
            consumers=len(self.consumers),
            first_time=self._records[self._order[0]].time if self._order else None,
            deleted=self.last_seq - self.first_seq + 1 - self.messages if self.messages else 0,
        )

    # --- reading

    def record(self, seq: int) -> Record | None:
        """Return the message with this sequence."""
        return self._records.get(seq)

    def next_record(self, seq: int, patterns: tuple[str, ...]) -> Record | None:
        """Return the first message from ``seq`` on under one of the patterns; no patterns: any."""
        if len(patterns) == 1 and is_literal(patterns[0]):
            seqs = self._subjects.get(patterns[0], [])
            index = bisect_left(seqs, seq)
            return self._records[seqs[index]] if index < len(seqs) else None
        for index in range(bisect_left(self._order, seq), len(self._order)):
            record = self._records[self._order[index]]
            if not patterns or any(matches(pattern, record.subject) for pattern in patterns):
                return record
        return None

    def last_record(self, subject: str) -> Record | None:
        """Return the last message under ``subject``, wildcards allowed."""
        return self._records.get(self.last_seq_of(subject))

    def last_seq_of(self, pattern: str) -> int:
        """Return the last sequence under ``pattern``, 0 when there is none."""
        return max((self._subjects[subject][-1] for subject in self.subjects(pattern)), default=0)

    def first_at(self, start: datetime) -> int:
        """Return the sequence of the first message stored at ``start`` or later, one past the end if there is none."""
        index = bisect_left(self._order, start, key=lambda seq: self._records[seq].time)
        return self._order[index] if index < len(self._order) else self.last_seq + 1

    def subjects(self, pattern: str) -> list[str]:
        """Return the subjects under ``pattern`` that hold messages."""
        if is_literal(pattern):
            return [pattern] if pattern in self._subjects else []
        return [subject for subject in self._subjects if matches(pattern, subject)]

    def count(self, subject: str) -> int:
        """Return how many messages ``subject`` holds."""
        return len(self._subjects.get(subject, ()))

    def count_from(self, seq: int, pattern: str) -> int:
        """Return how many messages from ``seq`` on are under the pattern."""
        found = (self._subjects[subject] for subject in self.subjects(pattern))
        return sum(len(seqs) - bisect_left(seqs, seq) for seqs in found)

    def seen(self, msg_id: str) -> int | None:
        """Return the sequence that a message id was stored under within the window."""
        oldest = self._clock.monotonic() - self.config.duplicate_window_s
        while self._msg_ids:
            first = next(iter(self._msg_ids))
            if self._msg_ids[first][0] > oldest:
                break
            del self._msg_ids[first]
        found = self._msg_ids.get(msg_id)
        return found[1] if found else None

    # --- writing

    def store(self, write: Write) -> PubAck:
        """Store one message, or find it stored already.

        Raises:
            ConflictError: If a condition does not hold.
            BackpressureError: If the stream is full.
            BusError: If it asks for what the stream does not allow.
        """
        staged = memory_admission.Staged()
        subject, headers = self._stored_name(write.subject), memory_record.freeze(write.headers)
        memory_admission.check(self, subject, write.data, headers, staged)
        if header.MSG_ID in headers:
            seq = self.seen(headers[header.MSG_ID])
            if seq is not None:
                return PubAck(self.name, seq, is_duplicate=True)
        memory_admission.check_room(self, subject, write.data, headers, staged)
        record = self._append(subject, write.data, headers, original=write.subject)
        self._announce()
        return PubAck(self.name, record.seq)

    def store_batch(self, writes: Sequence[Write]) -> PubAck:
        """Store all messages or none.

        Raises:
            ConflictError: If a condition of one does not hold, or a message id was seen.
            BackpressureError: If there is no room for all.
            BusError: If the stream takes no batches, or one asks for what it does not allow.
        """
        if not self.config.allow_atomic:
            message = f"atomic publish is disabled (10174) in {self.name}"
            raise BusError(message)
        staged = memory_admission.Staged()
        admitted = []
        for place, write in enumerate(writes, 1):
            subject, headers = self._stored_name(write.subject), memory_record.freeze(write.headers)
            memory_admission.check(self, subject, write.data, headers, staged)
            headers = self._batch_headers(headers, place, is_last=place == len(writes))
            self._check_msg_id(headers, staged)
            memory_admission.check_room(self, subject, write.data, headers, staged)
            staged.add(subject, write.data, headers)
            admitted.append((subject, write.data, headers, write.subject))
        for subject, data, headers, original in admitted:
            self._append(subject, data, headers, original=original)
        self._announce()
        return PubAck(self.name, self.last_seq, count=len(admitted))

    def copy_from(self, origin: MemoryStream) -> None:
        """Copy what a source has and this stream has not; stop where this one is full and go on with the next call."""
        source = next(source for source in self.config.sources if source.name == origin.name)
        record = origin.next_record(self._copied.get(origin.name, 0) + 1, source.filters)
        is_changed = False
        while record is not None:
            headers = memory_record.without_conditions(record.headers)
            filters = "\f".join(source.filters) or ">"
            stars = "\f".join(">" for _ in source.filters) or ">"
            headers[header.STREAM_SOURCE] = f"{origin.name} {record.seq} {filters} {stars} {record.subject} memory"
            frozen = memory_record.freeze(headers)
            subject = self._stored_name(record.subject)
            try:
                memory_admission.check_room(self, subject, record.data, frozen, memory_admission.Staged())
            except ConflictError:
                pass
            except BusError:
                break
            else:
                self._append(subject, record.data, frozen, original=record.subject)
                is_changed = True
            self._copied[origin.name] = record.seq
            record = origin.next_record(record.seq + 1, source.filters)
        if is_changed:
            self._announce()

    def reconfigure(self, config: StreamConfig) -> None:
        """Take new settings and apply them to what is stored."""
        self.config = config
        self._transform = Transform(*config.subject_transform) if config.subject_transform else None
        self._age_check_at = None
        for subject in list(self._subjects):
            self._enforce_subject_limit(subject)
        self._enforce_limits()
        self._watch_age()

    # --- deleting

    def remove(self, seq: int) -> bool:
        """Delete one message; False when there was none."""
        record = self._records.pop(seq, None)
        if record is None:
            return False
        _discard(self._order, seq)
        seqs = self._subjects[record.subject]
        _discard(seqs, seq)
        if not seqs:
            del self._subjects[record.subject]
        self.size_bytes -= record.size_bytes
        for consumer in self.consumers.values():
            consumer.forget(seq)
        return True

    def purge(self, *, subject: str | None, below_seq: int | None) -> int:
        """Delete all messages, or those on ``subject`` and before ``below_seq``; return how many."""
        names = self.subjects(subject) if subject is not None else list(self._subjects)
        doomed = [seq for name in names for seq in self._subjects[name] if below_seq is None or seq < below_seq]
        return sum(self.remove(seq) for seq in sorted(doomed))

    # --- inside

    def _stored_name(self, subject: str) -> str:
        return self._transform.apply(subject) if self._transform else subject

    def _batch_headers(self, headers: Headers, place: int, *, is_last: bool) -> Headers:
        # The real broker stores what made the batch along with each message; readers must cope with it.
        made = {header.BATCH_ID: f"{self.name}-{self.last_seq + 1}", header.BATCH_SEQ: str(place)}
        if is_last:
            made[header.BATCH_COMMIT] = "1"
        return memory_record.freeze({**headers, **made})

    def _check_msg_id(self, headers: Headers, staged: memory_admission.Staged) -> None:
        msg_id = headers.get(header.MSG_ID)
        if msg_id is not None and (msg_id in staged.msg_ids or self.seen(msg_id) is not None):
            message = f"batch publish contains duplicate message id (10201): {msg_id!r}"
            raise ConflictError(message)

    def _append(self, subject: str, data: bytes, headers: Headers, *, original: str) -> Record:
        self._clear_way(subject, headers)
        self.last_seq += 1
        size_bytes = memory_record.record_bytes(subject, data, headers)
        record = Record(self.last_seq, subject, bytes(data), headers, self._clock.now(), size_bytes, original)
        self._records[record.seq] = record
        self._order.append(record.seq)
        self._subjects.setdefault(subject, []).append(record.seq)
        self.size_bytes += size_bytes
        if header.MSG_ID in headers:
            self._msg_ids[headers[header.MSG_ID]] = (self._clock.monotonic(), record.seq)
        self._enforce_subject_limit(subject)
        self._enforce_limits()
        self._set_timers(record)
        return record

    def _clear_way(self, subject: str, headers: Headers) -> None:
        kind = memory_record.rollup(self.config, headers) if self.config.allow_rollup else None
        if kind is not None:
            self.purge(subject=subject if kind == "sub" else None, below_seq=None)
        if self.config.allow_schedules and headers.get(header.SCHEDULE_NEXT) == memory_record.SCHEDULE_PURGE:
            self.purge(subject=headers.get(header.SCHEDULER, ""), below_seq=None)

    def _announce(self) -> None:
        for consumer in list(self.consumers.values()):
            consumer.pump()
        for wake in list(self.on_append):
            wake()
        for copier in list(self.copiers):
            copier.copy_from(self)

    def _enforce_subject_limit(self, subject: str) -> None:
        limit = self.config.max_msgs_per_subject
        seqs = self._subjects.get(subject, [])
        while 0 < limit < len(seqs):
            self.remove(seqs[0])

    def _enforce_limits(self) -> None:
        config = self.config
        while self._order and (
            0 < config.max_msgs < len(self._order)
            or (0 < config.max_bytes < self.size_bytes and config.discard == "old")
        ):
            self.remove(self._order[0])

    def _set_timers(self, record: Record) -> None:
        if self.config.allow_msg_ttl:
            lifetime_s = memory_record.ttl_s(record.headers)
            if lifetime_s is not None:
                self._timers.call_at(self._clock.monotonic() + lifetime_s, partial(self.remove, record.seq))
        rule = memory_record.rule(record.headers) if self.config.allow_schedules else None
        if rule is not None:
            self._call_at_wall(rule.next_after(self._clock.now()), partial(self._fire, record.seq))
        self._watch_age()

    def _call_at_wall(self, due: datetime, act: Callable[[], None]) -> None:
        self._timers.call_at(self._clock.monotonic() + (due - self._clock.now()).total_seconds(), act)

    def _watch_age(self) -> None:
        if self.config.max_age_s <= 0 or not self._order or self._age_check_at is not None:
            return
        age_s = (self._clock.now() - self._records[self._order[0]].time).total_seconds()
        self._age_check_at = self._clock.monotonic() + max(0.0, self.config.max_age_s - age_s)
        self._timers.call_at(self._age_check_at, self._drop_aged)

    def _drop_aged(self) -> None:
        if self.config.max_age_s <= 0:
            return
        oldest = self._clock.now() - timedelta(seconds=self.config.max_age_s - SLACK_S)
        while self._order:
            record = self._records[self._order[0]]
            # Wall time counts in microseconds; without this slack the check would come back for the last one.
            if record.time > oldest + timedelta(microseconds=1):
                break
            self.remove(record.seq)
        self._age_check_at = None
        self._watch_age()

    def _fire(self, seq: int) -> None:
        record = self._records.get(seq)
        rule = memory_record.rule(record.headers) if record else None
        if record is None or rule is None:
            return
        now = self._clock.now()
        following = rule.next_after(now) if rule.is_recurring else None
        stamp = _stamp(following) if following else memory_record.SCHEDULE_PURGE
        headers = memory_record.firing_headers(record, stamp)
        target = record.headers[header.SCHEDULE_TARGET]
        # The purge of a one-time schedule is part of its firing: see ``_clear_way``.
        try:
            self.store(Write(target, record.data, headers))
        except BusError:
            following = following or now + timedelta(seconds=_REFUSED_FIRING_S)
        if following is not None:
            self._call_at_wall(following, partial(self._fire, seq))


def _discard(seqs: list[int], seq: int) -> None:
    index = bisect_left(seqs, seq)
    if index < len(seqs) and seqs[index] == seq:
        del seqs[index]


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
