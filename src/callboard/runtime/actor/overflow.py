"""Mail beyond a mailbox's cap: refused with an answer or a dead letter, or made room for by dropping what may go."""

from __future__ import annotations

from collections import deque

from callboard.runtime import events, logs
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Reply, ReplyError
from callboard.runtime.errors import BusError, CallboardError, MailboxFullError, TurnFencedError
from callboard.runtime.record import failure_of

_log = logs.get_logger(__name__)

GROUP = 100
# Refused mail stands in the record until everything before it is handled; beyond this many, mail waits instead.
MAX_REFUSED = 1000
_RETRY_S = 0.25


class Overflow:
    """What one actor does with mail beyond its cap.

    ``reject``: an ask is answered with ``mailbox_full``, anything else becomes a dead letter with that code.
    ``drop``: the oldest waiting mail whose handler is droppable goes in place of the new one; with none, as ``reject``.
    ``park``: nothing is refused, mail waits in the stream.
    """

    def __init__(self, activation: Staged) -> None:
        """Begin with nothing over."""
        self._activation = activation
        self._over: deque[Mail] = deque()
        # mail that is being refused: no handler runs for it meanwhile
        self._claimed: set[int] = set()
        self._is_shedding = False

    def is_over(self, mail: Mail) -> bool:
        """Return whether the mailbox is beyond its cap with this mail, which has just been put in."""
        options = self._activation.kind.options
        cap = options.mailbox_cap
        if cap is None or options.mailbox_policy == "park" or mail.kind is not None:
            return False
        return self._activation.mailbox.depth - len(self._claimed) > cap

    def claims(self, mail: Mail) -> bool:
        """Return whether this mail is being refused; the actor is woken when that is over."""
        return mail.seq in self._claimed

    def add(self, mail: Mail) -> None:
        """Refuse this mail, or drop an older one for it, in the background."""
        self._over.append(mail)
        self._claimed.add(mail.seq)
        if not self._is_shedding:
            self._is_shedding = True
            _ = self._activation.services.spawn(self._shed(), f"actor-{self._activation.address}-overflow")

    async def _shed(self) -> None:
        activation = self._activation
        try:
            while self._over:
                await activation.ensure_read()
                if len(activation.known.ahead) >= MAX_REFUSED:
                    self._over.clear()
                    return
                await self._refuse([self._victim(self._over.popleft()) for _ in range(min(GROUP, len(self._over)))])
        except TurnFencedError:
            activation.fenced()
        except CallboardError as error:
            # it was not refused, so it waits its turn
            _log.warning(
                events.MAIL_REFUSED, actor=str(activation.address), mails=0, policy="reject", problem=str(error)
            )
        finally:
            self._is_shedding = False
            self._over.clear()
            self._claimed.clear()
            activation.wake()

    def _victim(self, mail: Mail) -> Mail:
        activation = self._activation
        if activation.kind.options.mailbox_policy != "drop":
            return mail
        for waiting in activation.mailbox.waiting():
            is_free = waiting.seq != activation.under_way and waiting.seq not in self._claimed
            if is_free and waiting.kind is None and _is_droppable(activation, waiting):
                self._claimed.remove(mail.seq)
                self._claimed.add(waiting.seq)
                return waiting
        return mail

    async def _refuse(self, mails: list[Mail]) -> None:
        activation = self._activation
        cap = activation.kind.options.mailbox_cap or 0
        depth = activation.mailbox.depth
        text = f"the mailbox of {activation.address} is full: {depth} mails wait, its cap is {cap}; send it again later"
        error = MailboxFullError(text, depth=depth, cap=cap)
        policy = activation.kind.options.mailbox_policy
        for mail in mails:
            if not mail.reply_to and not (policy == "drop" and _is_droppable(activation, mail)):
                await activation.letter(mail, failure_of(error), attempts=0)
        reply = ReplyError(code=error.code, message=text)
        answers = [(mail, Reply(id=mail.id, error=reply)) for mail in mails]
        while True:
            try:
                await activation.commit([mail.seq for mail in mails], to=answers, remembers=False)
                break
            except BusError as problem:
                if not problem.retryable:
                    raise
                await activation.services.clock.sleep(_RETRY_S)
        self._claimed.difference_update(mail.seq for mail in mails)
        activation.wake()
        _log.warning(events.MAIL_REFUSED, actor=str(activation.address), mails=len(mails), policy=policy, problem="")


def _is_droppable(activation: Staged, mail: Mail) -> bool:
    try:
        handler, _ = activation.kind.select(mail.type, mail.data, mail.content_type)
    except CallboardError:
        return False
    return handler.droppable
