"""Orders to actors: pause, resume, kill, restart, cancel, show, requeue. They overtake all mail."""

from __future__ import annotations

import contextlib
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import park, verdict
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.execute import STOP_CANCEL
from callboard.runtime.actor.letter import MailLetter, decode_letter
from callboard.runtime.actor.mail import Mail, mail_headers
from callboard.runtime.actor.outbox import event_write
from callboard.runtime.actor.partition import Stage
from callboard.runtime.actor.record import Parked, Reply
from callboard.runtime.actor.run import CANCELLED
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Message, Subscription, Write
from callboard.runtime.errors import (
    BusError,
    CallboardError,
    DecodeError,
    InputError,
    StateDecodeError,
    TurnCancelledError,
)

Operation = Literal["pause", "resume", "kill", "restart", "cancel", "show", "requeue"]


class ActorOrder(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.actor.<type>.<key>``.

    Attributes:
        reason: For people; kept with the actor.
        seq: The mail that is meant, 0 for all: of ``cancel`` the one that the turn began with, of ``requeue`` the one
            that the dead letter is of.
        id: For ``cancel``: the id of the mail that is meant, be it running, parked or waiting; "" for any.
    """

    op: Operation
    reason: str = ""
    seq: int = 0
    id: str = ""


_ACTIVE: dict[str, object] = {"status": "active", "reason": "", "failures": 0}
_order = msgspec.json.Decoder(ActorOrder)


class OrderServer:
    """Takes orders about the actors that the host runs; about others it stays silent, their host answers.

    Who has an actor in mid-turn carries them out, be its partition another's: a record written by somebody else would
    have the turn's commit refused.
    """

    def __init__(self, host: Stage) -> None:
        """Prepare; ``open`` begins to listen."""
        self._host = host
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Listen for orders to every type of the host."""
        bus = self._host.services.bus
        for name in self._host.types:
            self._subscriptions.append(await bus.subscribe(subjects.ctl_actor(name), self._on_order))

    async def close(self) -> None:
        """Take no more orders."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.close()

    def _on_order(self, message: Message) -> None:
        # cb.ctl.actor.<type>.<key>
        _, _, _, kind, token = message.subject.split(".", 4)
        key = subjects.unescape(token)
        if not self._runs(kind, key):
            return
        _ = self._host.services.spawn(self._answer(message, kind, key), "actor-order")

    async def _answer(self, message: Message, kind: str, key: str) -> None:
        try:
            order = _order.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            body: dict[str, object] = {"error": {"code": DecodeError.code, "message": f"not an order: {error}"}}
        else:
            body = await self._obey(order, kind, key)
        if message.reply:
            with contextlib.suppress(BusError):
                await self._host.services.bus.publish(message.reply, msgspec.json.encode(body))

    def _runs(self, kind: str, key: str) -> bool:
        if self._host.find_held(kind, key) is not None:
            return True
        partition = self._host.find(kind, key)
        known = partition.activations.get(key) if partition is not None else None
        return partition is not None and (known is None or known.held_by is None)

    def _activation(self, kind: str, key: str) -> Activation | None:
        if not self._runs(kind, key):
            return None
        partition = self._host.find(kind, key)
        held = self._host.find_held(kind, key)
        return held if held is not None or partition is None else partition.activation(key)

    async def _obey(self, order: ActorOrder, kind: str, key: str) -> dict[str, object]:
        activation = self._activation(kind, key)
        if activation is None:
            return {"error": {"code": "actor", "message": f"{kind}/{key} has just moved to another host: try again"}}
        try:
            try:
                await activation.ensure_read()
            except StateDecodeError as error:
                if order.op != "show":
                    raise
                activation.problem = f"{error.code}: {error}"
            return {"ok": True} | await obey(activation, order)
        except CallboardError as error:
            return {"error": {"code": error.code, "message": str(error)}}


async def obey(activation: Activation, order: ActorOrder) -> dict[str, object]:
    """Carry out an order about one actor.

    Raises:
        CallboardError: If it cannot be.
    """
    match order.op:
        case "show":
            return await show(activation)
        case "pause":
            return await _pause(activation, order.reason)
        case "resume" | "restart":
            if order.op == "restart":
                activation.runner.restart()
            activation.runner.budget.refill()
            await activation.commit([], changes=_ACTIVE)
            await activation.runner.hook("on_resume")
        case "kill":
            await activation.commit([], changes={"status": "killed", "reason": order.reason or "killed by request"})
            activation.runner.stop(STOP_CANCEL, order.reason or "the actor was killed by request")
        case "cancel":
            await _cancel(activation, order)
        case "requeue":
            count = await _requeue(activation, order.seq)
            activation.runner.budget.refill()
            await activation.commit([], changes=_ACTIVE)
            activation.wake()
            return {"requeued": count}
    activation.wake()
    return {"status": activation.known.status}


async def _pause(activation: Activation, reason: str) -> dict[str, object]:
    """Pause it; the reason of who paused it first stays, and who does so again is told."""
    known = activation.known
    if known.status == "paused":
        return {"status": known.status, "reason": known.reason, "already": True}
    reason = reason or "paused by request"
    await activation.commit([], changes={"status": "paused", "reason": reason})
    await activation.runner.hook("on_pause")
    activation.wake()
    return {"status": "paused", "reason": reason}


async def show(activation: Activation) -> dict[str, object]:
    """Return what only the owner knows of an actor. Its health hook is given a second."""
    turn, job = activation.turn, activation.runner.job
    running: dict[str, object] | None = None
    if turn is not None:
        running = {
            "seq": turn.mail.seq,
            "cause_seq": turn.cause_seq,
            "type": turn.mail.type,
            "attempt": turn.attempt,
            "since": turn.started_at,
            "steps_run": turn.journal.executed,
            "steps_replayed": turn.journal.replayed,
            "sender": turn.mail.sender,
        }
    elif job is not None:
        running = {
            "seq": job.mail.seq,
            "cause_seq": job.cause_seq,
            "type": job.mail.type,
            "waits_for_retry": True,
            "sender": job.mail.sender,
        }
    status = activation.record.status if activation.record is not None else "failed"
    return {
        "worker": activation.services.worker,
        "epoch": activation.owner.epoch,
        "partition": activation.owner.number,
        "status": "failed" if activation.problem is not None and status == "active" else status,
        "problem": activation.problem,
        "held_by": activation.held_by,
        "depth": activation.mailbox.depth,
        "running": running,
        "health": await activation.runner.instance.health(),
    }


async def _cancel(activation: Activation, order: ActorOrder) -> None:
    reason = order.reason or "cancelled by request"
    job = activation.runner.job
    if job is not None and order.seq in (0, job.mail.seq) and order.id in ("", job.mail.id):
        activation.runner.stop(STOP_CANCEL, reason)
        return
    digest = verdict.digest_of(order.id) if order.id else ""
    parked = [found for found in activation.known.parked if order.seq in (0, found.seq) and digest in ("", found.id)]
    if parked:
        await _cancel_parked(activation, parked, reason)
        return
    waiting = [mail for mail in activation.mailbox.waiting() if order.id and mail.id == order.id]
    if not waiting:
        meant = f" {order.seq}" if order.seq else f" {order.id!r}" if order.id else ""
        text = f"{activation.address} has no turn{meant} to cancel: nothing of it runs, is parked or waits"
        raise InputError(text)
    error = TurnCancelledError(reason)
    answers = [(mail, replies.error_reply(mail.id, error)) for mail in waiting]
    await activation.commit([mail.seq for mail in waiting], to=answers)


async def _cancel_parked(activation: Activation, parked: list[Parked], reason: str) -> None:
    gone = {found.seq for found in parked}
    error = TurnCancelledError(reason)
    answers: list[tuple[Mail, Reply]] = []
    for found in parked:
        kept = await park.read(activation, found.seq)
        if kept is not None:
            mail = park.sender_of(activation, kept)
            reply = replies.error_reply(mail.id, error)
            answers += [
                (mail, reply),
                *((replace(mail, reply_to=asker, has_own_id=False), reply) for asker in found.askers),
            ]
    writes = [write for found in parked for write in park.end_writes(activation, found)]
    ttl_s = activation.services.rules.event_ttl_s
    for seq in sorted(gone):
        facts = {"seq": seq, "reason": reason, "partial": False, "steps": 0}
        writes.append(event_write(activation.address, CANCELLED, facts, ttl_s=ttl_s))
    await activation.commit([], to=answers, writes=writes, changes={"parked": verdict.unparking(gone)})
    job = activation.runner.job
    if job is not None and job.mail.seq in gone:
        # it was resumed meanwhile
        activation.runner.stop(STOP_CANCEL, reason)


async def _requeue(activation: Activation, seq: int) -> int:
    """Put the actor's dead letters, or that of mail ``seq``, back into its mailbox, oldest first; return how many."""
    bus = activation.services.bus
    address = activation.address
    wildcard = subjects.dead_mail(address.type, address.key, 0).removesuffix("0") + "*"
    count = 0
    for stored in sorted(await bus.get_many(subjects.DEAD, [wildcard]), key=lambda found: found.seq):
        letter = decode_letter(stored.data)
        if seq not in (0, letter.seq):
            continue
        await bus.store(_requeued(activation, letter))
        _ = await bus.delete_message(subjects.DEAD, stored.seq)
        count += 1
    return count


def _requeued(activation: Activation, letter: MailLetter) -> Write:
    address = activation.address
    # what a timer sent comes back as a plain message, to be handled whatever became of the timer
    firing = (header.MAIL_KIND, header.TIMER, header.TIMER_GENERATION)
    names = (header.MAIL_ID, header.MSG_ID, header.REPLY_TO, header.DEADLINE, header.CHAIN, *firing)
    kept = {k: v for k, v in letter.headers.items() if k not in names and not k.startswith("Nats-")}
    # the broker drops a repeat of the same requeue
    kept |= {header.REQUEUE_OF: str(letter.seq), header.MSG_ID: f"requeue/{address}/{letter.seq}"}
    return Write(subjects.mail(address.type, address.key), letter.data, mail_headers(extra=kept))
