"""Work on JetStream: standing pulls and what settles their deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, Delivery, Pull
from callboard.runtime.bus.jetstream_admin import Administration
from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_link import Link, Raw
from callboard.runtime.bus.jetstream_pull import StandingPull
from callboard.runtime.errors import BusError, NotFoundError, PermissionDeniedError

_ACK = b"+ACK"
_EXTEND = b"+WPI"
# A bare nak comes back in the same millisecond, for ever.
_MIN_DELAY_S = 0.001


class Work(Administration):
    """The part of the bus that takes work and gives it back."""

    _link: Link
    _acks: Calls[bool]

    async def pull(self, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> Pull:
        """Open a standing pull with no credit. One round trip.

        Raises:
            NotFoundError: If the stream or consumer does not exist.
        """
        try:
            if await self.consumer_info(stream, consumer) is None:
                message = f"consumer {consumer} of stream {stream} does not exist: provision it first"
                raise NotFoundError(message)
        except PermissionDeniedError:
            # A worker may be allowed to pull without being allowed to look; a missing consumer is then a `problem`.
            pass
        return StandingPull(self._link, stream, consumer, sink)

    async def ack(self, tokens: Sequence[str], *, confirm: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove deliveries from the work queue; with ``confirm``, in one round trip for all.

        Raises:
            BusTimeoutError: If a confirmation stays away.
            NoRespondersError: If the consumer is gone.
        """
        send = self._link.send
        if not confirm or not tokens:
            for token in tokens:
                await send(token, _ACK, "", None)
            return
        call = self._acks.open(tokens, timeout_s)
        try:
            for token, reply in zip(tokens, self._acks.reply_subjects(call), strict=True):
                await send(token, _ACK, reply, None)
        except BaseException:
            self._acks.forget(call)
            raise
        for answer in await self._acks.wait(call):
            if isinstance(answer, BusError):
                raise answer

    async def nak(self, token: str, *, delay_s: float) -> None:
        """Give a delivery back, to be handed out again after ``delay_s``."""
        delay_ns = round(max(delay_s, _MIN_DELAY_S) * 1_000_000_000)
        await self._link.send(token, b'-NAK {"delay":%d}' % delay_ns, "", None)

    async def extend(self, tokens: Sequence[str]) -> None:
        """Keep deliveries ours for another ``ack_wait`` each."""
        send = self._link.send
        for token in tokens:
            await send(token, _EXTEND, "", None)

    async def term(self, token: str, reason: str) -> None:
        """Remove a delivery for good with a reason on one line."""
        await self._link.send(token, f"+TERM {' '.join(reason.split())}".encode(), "", None)


def confirmed(_raw: Raw, _subject: str) -> bool:
    """Return that an acknowledgement was taken: its answer is empty."""
    return True
