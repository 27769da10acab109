"""Mail of a running turn's own chain, handled inside that turn: A asks B, B asks A, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import UNSET

from callboard.runtime.actor import payload, verdict
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.execute import STOP_DEADLINE, Part, execute
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Reply
from callboard.runtime.actor.turn import Turn
from callboard.runtime.errors import CallboardError, DecodeError, MailLoopError


class Reentry:
    """The turns inside one activation's running turn.

    What such a turn sends leaves with the commit of the turn around it, and its mail counts as handled then. Its answer
    does not wait for that, since the turn around it does. When the turn around it parks or is stopped, its mail stays
    and is handled by itself.

    Attributes:
        answers: Mails answered inside the running turn, with their answers: to be remembered with its commit.
    """

    def __init__(
        self, activation: Staged, journal: Callable[[Mail], Journal], part: Callable[[Turn], Part | None]
    ) -> None:
        """Begin with no turn."""
        self.answers: list[tuple[Mail, Reply]] = []
        self._activation = activation
        self._journal = journal
        self._part = part
        self._outer: Turn | None = None
        self._actor: Actor | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._taken: set[int] = set()

    def begin(self, turn: Turn, actor: Actor) -> None:
        """Take mail of this turn's chain from now on."""
        self.answers = []
        self._tasks = {}
        self._taken = set()
        self._outer, self._actor = turn, actor
        turn.on_ask = self.look

    def takes(self, mail: Mail) -> bool:
        """Return whether the running turn waits, by an ask, for what this question leads to; take it then."""
        turn = self._outer
        if turn is None or not turn.asking or not mail.reply_to or turn.stop is not None:
            return False
        if not any(link.address == turn.address and link.seq == turn.mail.seq for link in mail.chain):
            return False
        self._take(turn, mail)
        return True

    def look(self) -> None:
        """Take what came while the turn did not wait, or before it was begun again."""
        for mail in self._activation.mailbox.waiting():
            if mail.chain:
                _ = self.takes(mail)

    async def end(self) -> None:
        """Take no more, and wait for what runs."""
        self._outer = None
        while tasks := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(tasks)

    def stop(self) -> None:
        """Stop what runs."""
        self._outer = None
        for task in self._tasks.values():
            task.cancel()

    def _take(self, outer: Turn, mail: Mail) -> None:
        if mail.seq in self._taken or self._actor is None:
            return
        self._taken.add(mail.seq)
        earlier = self._tasks.get(mail.id)
        run = self._handle(outer, self._actor, mail) if earlier is None else self._repeat(outer, earlier, mail)
        task = self._activation.services.spawn(run, f"actor-{outer.address}-inner")
        if task is not None:
            self._tasks[mail.id if earlier is None else f"{mail.id} {mail.seq}"] = task

    async def _repeat(self, outer: Turn, earlier: asyncio.Task[None], mail: Mail) -> None:
        await asyncio.wait([earlier])
        found = next((reply for known, reply in self.answers if known.id == mail.id), None)
        if found is not None:
            outer.repeats.append(mail.seq)
            await self._activation.answer(mail, found)

    async def _handle(self, outer: Turn, actor: Actor, mail: Mail) -> None:
        activation = self._activation
        reply = verdict.repeated(mail, activation.known)
        if reply is not None:
            outer.repeats.append(mail.seq)
        else:
            inner = self._turn(outer, mail)
            reply = await self._answer(inner, actor, mail)
            outer.inner.append(inner)
        self.answers.append((mail, reply))
        await activation.answer(mail, reply)

    async def _answer(self, inner: Turn, actor: Actor, mail: Mail) -> Reply:
        activation = self._activation
        services = activation.services
        try:
            mail = await payload.whole(services.blobs, mail)
            _check(mail, activation)
            handler, data = activation.kind.select(mail.type, mail.data, mail.content_type)
            argument = activation.kind.decode(handler, mail.type, data, mail.content_type)
        except CallboardError as error:
            return replies.error_reply(mail.id, error)
        timer = None
        if mail.deadline is not None:
            left_s = max(0.0, (mail.deadline - services.clock.now()).total_seconds())
            timer = asyncio.get_running_loop().call_later(left_s, _stop, inner, asyncio.current_task())
        try:
            ending = await execute(inner, handler, actor, argument, part=self._part(inner), executor=services.executor)
        finally:
            inner.is_over = True
            if timer is not None:
                timer.cancel()
        reply = await replies.of(services, mail, ending)
        if reply.error is not UNSET:
            inner.discard()
        return reply

    def _turn(self, outer: Turn, mail: Mail) -> Turn:
        return Turn(
            self._activation.services,
            address=outer.address,
            mail=mail,
            journal=lambda: self._journal(mail),
            attempt=outer.attempt,
            epoch=outer.epoch,
            cause_seq=mail.seq,
            is_inner=True,
        )


def _check(mail: Mail, activation: Staged) -> None:
    if mail.problem:
        raise DecodeError(mail.problem)
    loop = verdict.loop_of(mail, activation.kind)
    if loop is not None:
        raise MailLoopError(loop.message)


def _stop(turn: Turn, task: asyncio.Task[None] | None) -> None:
    if task is not None and turn.stop is None:
        turn.stop = (STOP_DEADLINE, "its deadline passed while it ran")
        task.cancel()
