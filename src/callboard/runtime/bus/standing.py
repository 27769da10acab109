"""What a bus keeps open until it is closed: interest in a subject, a pull on a consumer, a tail of a stream."""

from __future__ import annotations

from typing import Protocol


class Subscription(Protocol):
    """Interest in a plain subject."""

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards. Closing twice is harmless."""
        ...


class Pull(Protocol):
    """A standing pull on one durable consumer.

    Credit is the number of messages the broker may still hand out. It survives: after a reconnect, a lost or expired
    request (statuses 404, 408, 409) or two missed idle heartbeats the pull asks again for what is outstanding, on a
    new inbox, so that an old request can never deliver beyond the credit.
    """

    @property
    def credit(self) -> int:
        """Messages granted and not yet delivered."""
        ...

    @property
    def last_heard(self) -> float:
        """Monotonic seconds when the broker last answered this pull: a delivery, a status or an idle heartbeat."""
        ...

    @property
    def problem(self) -> str | None:
        """Why the pull cannot work now (consumer missing, no permission, not connected), or None."""
        ...

    def grant(self, count: int) -> None:
        """Allow ``count`` more messages; returns at once, the request goes out in this loop turn."""
        ...

    async def close(self) -> None:
        """Withdraw the outstanding credit. A message already on its way may still reach the sink: hand it back."""
        ...


class Tail(Protocol):
    """A standing reader of stored messages. Whatever breaks, it is opened again after the last that was delivered.

    It breaks by a gap in the broker's numbering, any status that is neither a heartbeat nor an expired request, a
    reconnect, and silence beyond two heartbeats (of 1 s).
    """

    @property
    def next_seq(self) -> int:
        """Every message on the subject with a sequence below was given to the sink, or does not exist.

        Moves with each message, and with heartbeats past messages on other subjects.
        """
        ...

    @property
    def last_heard(self) -> float:
        """Monotonic seconds of the broker's last message or heartbeat. None come while it is held."""
        ...

    @property
    def problem(self) -> str | None:
        """Why nothing can come now (not connected, no such stream, a start beyond its end), or None.

        When the stream ends before the start, messages up to the start are never delivered: somebody has emptied the
        stream, or its server is still reading it. It goes when the end has passed the start.
        """
        ...

    def hold(self) -> None:
        """Let no more be asked for. What was asked still comes: 256 messages or some 8 MB at most."""
        ...

    def resume(self) -> None:
        """Go on after ``hold``; harmless when not held."""
        ...

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards. Closing twice is harmless."""
        ...
