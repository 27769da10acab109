"""What a supervisor is told: an actor that it looks after has failed and waits."""

from __future__ import annotations

from msgspec import Struct


class ActorFailed(Struct, frozen=True, kw_only=True):
    """An actor stopped handling its mail; it is told to the actor that its class names as ``supervisor``.

    A supervisor handles it like any message: ``@on async def failed(self, m: ActorFailed)``. Nothing is lost: the mail
    of the failed actor waits until somebody gives the order ``restart`` or ``requeue``.

    Attributes:
        address: Who failed, ``type/key``.
        reason: Why, for people.
        code: Code of the error that was the last straw.
        seq: Sequence of the mail under which it failed.
    """

    address: str
    reason: str
    code: str
    seq: int = 0
