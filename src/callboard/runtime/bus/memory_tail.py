"""A standing tail on a stream of the in-memory broker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from callboard.runtime.bus.base import Stored
from callboard.runtime.bus.memory_pull import Line
from callboard.runtime.bus.memory_stream import MemoryStream

# A burst lets others run after so many messages, as the real one's credit does.
_BURST = 256


class MemoryTail:
    """A tail; messages reach the sink on a later loop turn, in bursts."""

    def __init__(
        self,
        link: Line,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],
        *,
        start_seq: int,
        on_gap: Callable[[str], None] | None,
    ) -> None:
        """Begin to listen."""
        self.next_seq = max(1, start_seq)
        self._link = link
        self._stream = stream
        self._subject = subject
        self._sink = sink
        self._on_gap = on_gap
        self._last_heard = link.broker.clock.monotonic()
        self._is_open = True
        self._is_held = False
        self._is_posted = False
        self._is_told = False
        link.broker.watch(stream, self._wake)
        self._wake()

    @property
    def last_heard(self) -> float:
        """Monotonic seconds of the broker's last sign: now, while the link and the stream stand."""
        if self._link.is_connected and self._log is not None:
            self._last_heard = self._link.broker.clock.monotonic()
        return self._last_heard

    @property
    def problem(self) -> str | None:
        """Why nothing can come now, or None."""
        if not self._link.is_connected:
            return "not connected"
        log = self._log
        if log is None:
            return f"stream {self._stream} does not exist"
        if log.last_seq + 1 < self.next_seq:
            return f"the stream ends at {log.last_seq} before the start at {self.next_seq}"
        return None

    def hold(self) -> None:
        """Let no more come."""
        self._is_held = True

    def resume(self) -> None:
        """Go on after ``hold``."""
        self._is_held = False
        self._wake()

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards. Closing twice is harmless."""
        self.end()

    def end(self) -> None:
        """End it now."""
        self._is_open = False
        self._link.broker.unwatch(self._stream, self._wake)
        self._link.drop(self)

    def unlink(self) -> None:
        """Lose what is on its way, as a broken link does."""
        self._is_posted = False
        self._tell("the connection was lost")

    def relink(self) -> None:
        """Go on after the last that was delivered."""
        self._is_told = False
        self._wake()

    # --- inside

    @property
    def _log(self) -> MemoryStream | None:
        broker = self._link.broker
        return broker.stream(self._stream) if self._stream in broker.stream_names() else None

    def _wake(self) -> None:
        if not self._is_open or self._is_held or self._is_posted or not self._link.is_connected:
            return
        log = self._log
        if log is None or log.last_seq + 1 < self.next_seq:
            self._tell(self.problem or "")
            return
        self._is_told = False
        record = log.next_record(self.next_seq, (self._subject,))
        if record is None:
            self.next_seq = log.last_seq + 1
        else:
            self._is_posted = True
            self._link.post(self._burst)

    def _burst(self) -> None:
        self._is_posted = False
        for _ in range(_BURST):
            log = self._log
            record = log.next_record(self.next_seq, (self._subject,)) if log and not self._is_held else None
            if record is None or not self._is_open:
                break
            self.next_seq = record.seq + 1
            self._sink(record.stored())
        self._wake()

    def _tell(self, reason: str) -> None:
        if self._on_gap is not None and not self._is_told:
            # on this link's side, not in the code of whoever broke it
            self._link.post(partial(self._on_gap, reason))
        self._is_told = True
