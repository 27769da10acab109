"""When an actor is given up: its budget of restarts, and who is told that it failed."""

from __future__ import annotations

from collections import deque

from callboard.runtime import codec
from callboard.runtime.actor.mail import mail_headers, mail_write
from callboard.runtime.actor.notice import ActorFailed
from callboard.runtime.actor.options import ActorOptions
from callboard.runtime.actor.outbox import event_write
from callboard.runtime.actor.ports import Staged
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import TerminalError
from callboard.runtime.record import Failure

FAILED = "failed"
MAX_REASON = 500


class Budget:
    """Restarts of one actor within its window. It is kept in memory: another host begins with a whole one."""

    __slots__ = ("_restarts",)

    def __init__(self) -> None:
        """Begin with nothing spent."""
        self._restarts: deque[float] = deque()

    def spend(self, options: ActorOptions, now_s: float) -> bool:
        """Count a restart; False when the budget does not allow it."""
        self._restarts.append(now_s)
        while now_s - self._restarts[0] > options.restart_window_s:
            self._restarts.popleft()
        return len(self._restarts) <= options.restart_budget

    def refill(self) -> None:
        """Begin anew."""
        self._restarts.clear()


def failing(activation: Staged, failure: Failure, reason: str, *, seq: int) -> tuple[dict[str, object], list[Write]]:
    """Return what a commit changes and sends along when it fails the actor: event ``failed``, its supervisor's mail.

    The supervisor is told within the commit, so it hears of every failure once.
    """
    address = activation.address
    text = reason[:MAX_REASON]
    notice = ActorFailed(address=str(address), reason=text, code=failure.code, seq=seq)
    writes = [event_write(address, FAILED, notice, ttl_s=activation.services.rules.event_ttl_s)]
    supervisor = activation.kind.options.supervisor
    # nobody looks after himself: the mail would wait with the rest
    if supervisor is not None and supervisor != address:
        headers = mail_headers(type=ActorFailed.__name__, sender=str(address))
        writes.append(mail_write(supervisor, codec.encode(notice), headers))
    return {"status": "failed", "reason": text}, writes


def is_poison(failure: Failure, *, attempts: int, is_ask: bool) -> bool:
    """Return whether a dead letter counts towards the actor's ``poison_limit``.

    What no handler ran for is its sender's fault, and an asker who was told ``TerminalError`` has its answer: neither
    says that the actor is ill.
    """
    return attempts > 0 and not (is_ask and failure.code == TerminalError.code)
