"""The door for asks: any host of a type takes one, stores it as mail, and its actor's owner answers the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from callboard.runtime import subjects
from callboard.runtime.actor import payload
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.commit import Committed, Refused, Result
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.execute import invoke
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.mail import mail_write, wrong_key
from callboard.runtime.actor.partition import Stage
from callboard.runtime.actor.record import StateRecord, decode
from callboard.runtime.actor.state import actor_of
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Message, Subscription
from callboard.runtime.envelope import parse_deadline
from callboard.runtime.errors import (
    BusError,
    CallboardError,
    DeadlineError,
    InvalidNameError,
    MailboxFullError,
    UnknownMessageError,
)
from callboard.runtime.record import failure_of


class AskServer:
    """Takes the asks that the broker spreads over the hosts of a type."""

    def __init__(self, host: Stage) -> None:
        """Prepare; ``open`` begins to listen."""
        self._host = host
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Listen for asks to every type of the host."""
        for name in self._host.types:
            for subject in (subjects.ask(name), subjects.call(name)):
                self._subscriptions.append(
                    await self._host.services.bus.subscribe(subject, self._on_ask, queue=subjects.ASK_GROUP)
                )

    async def close(self) -> None:
        """Take no more asks; those taken are stored and answered."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.close()

    def _on_ask(self, message: Message) -> None:
        _, _, name, token = message.subject.split(".", 3)
        kind = self._host.types.get(name)
        if kind is None:
            return
        address = Address(name, subjects.unescape(token))
        try:
            if subjects.escape(address.key) != token:
                raise wrong_key(token)
        except InvalidNameError as error:
            self._refuse(message, error)
            return
        self._sort(message, kind, address)

    def _sort(self, message: Message, kind: ActorType, address: Address) -> None:
        services = self._host.services
        headers = message.headers or {}
        if header.TRIAL in headers:
            _ = services.spawn(self._try(message, kind), "ask-trial")
            return
        if payload.is_stowed(headers) and header.TYPE not in headers:
            _ = services.spawn(self._sort_large(message, kind, address), "ask-large")
            return
        try:
            handler, data = kind.select(headers.get(header.TYPE), message.data, headers.get(header.CONTENT_TYPE))
        except UnknownMessageError as error:
            if not self._is_awaited(headers):
                self._refuse(message, error)
                return
        except CallboardError as error:
            self._refuse(message, error)
            return
        else:
            if handler.read_only:
                _ = services.spawn(self._read(message, kind, address, handler, data), "ask-read")
                return
        self._store(message, kind, address)

    async def _sort_large(self, message: Message, kind: ActorType, address: Address) -> None:
        """Find the handler of a question that lies in the object store and does not say its type."""
        headers = message.headers or {}
        try:
            data = await payload.fetch(self._host.services.blobs, message.data, headers)
            handler, data = kind.select(None, data, headers.get(header.CONTENT_TYPE))
        except CallboardError as error:
            self._refuse(message, error)
            return
        if handler.read_only:
            await self._read(message, kind, address, handler, data)
        else:
            self._store(message, kind, address)

    def _store(self, message: Message, kind: ActorType, address: Address) -> None:
        services = self._host.services
        full = self._full(kind, address)
        if full is not None:
            self._refuse(message, full)
            return
        write = mail_write(address, message.data, _stored_headers(message))
        services.committer.add((write,), lambda result: self._stored(message, result))

    def _is_awaited(self, headers: Mapping[str, str]) -> bool:
        """Return whether it may be what a parked turn waits for: those need no handler of their own."""
        return header.TYPE in headers

    def _full(self, kind: ActorType, address: Address) -> MailboxFullError | None:
        cap = kind.options.mailbox_cap
        partition = self._host.find(address.type, address.key) if cap is not None else None
        activation = partition.activations.get(address.key) if partition is not None else None
        if cap is None or activation is None or kind.options.mailbox_policy != "reject":
            return None
        depth = activation.mailbox.depth
        if depth < cap:
            return None
        text = f"the mailbox of {address} holds {depth} mails, its cap is {cap}: nothing was stored, ask again later"
        return MailboxFullError(text, depth=depth, cap=cap)

    def _stored(self, message: Message, result: Result) -> None:
        if isinstance(result, Committed):
            return
        error = result.error if isinstance(result, Refused) else BusError("the mail was refused")
        self._refuse(message, error)

    def _refuse(self, message: Message, error: CallboardError) -> None:
        if message.reply:
            reply = replies.error_reply("", error)
            _ = self._host.services.spawn(replies.send(self._host.services, message.reply, reply), "ask-refuse")

    async def _try(self, message: Message, kind: ActorType) -> None:
        """Say whether a handler would take a message; nothing is stored and none is called."""
        headers = message.headers or {}
        name, content_type = headers.get(header.TYPE), headers.get(header.CONTENT_TYPE)
        try:
            whole = await payload.fetch(self._host.services.blobs, message.data, headers)
            handler, data = kind.select(name, whole, content_type)
            _ = kind.decode(handler, name, data, content_type)
        except CallboardError as error:
            self._refuse(message, error)
            return
        if message.reply:
            await replies.send(self._host.services, message.reply, replies.value_reply("", None))

    async def _read(self, message: Message, kind: ActorType, address: Address, handler: Handler, data: bytes) -> None:
        """Run a read-only handler on the state that stands, beside whatever turn is under way."""
        services = self._host.services
        headers = message.headers or {}
        limit = asyncio.timeout(None)
        try:
            limit = asyncio.timeout(self._left_s(headers, handler, kind))
            async with limit:
                value = await self._value(headers, kind, address, handler, data)
            reply = await replies.stowed(services, replies.value_reply("", value), is_kept=False)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a user's handler may raise anything; it is data from here on
            late = DeadlineError("it took longer than its deadline or its limit allows")
            reply = replies.failure_reply("", failure_of(late if limit.expired() else error))
        if message.reply:
            await replies.send(services, message.reply, reply)

    async def _value(
        self, headers: Mapping[str, str], kind: ActorType, address: Address, handler: Handler, data: bytes
    ) -> object:
        services = self._host.services
        data = data or await payload.fetch(services.blobs, data, headers)
        actor = await actor_of(kind, address, await self._record(address), services.blobs)
        argument = kind.decode(handler, headers.get(header.TYPE), data, headers.get(header.CONTENT_TYPE))
        return await invoke(handler, actor, argument, executor=services.executor)

    def _left_s(self, headers: Mapping[str, str], handler: Handler, kind: ActorType) -> float | None:
        limits = [limit for limit in (handler.timeout_s, kind.options.turn_timeout_s) if limit]
        deadline = parse_deadline(headers.get(header.DEADLINE))
        if deadline is not None:
            limits.append((deadline - self._host.services.clock.now()).total_seconds())
        return min(limits, default=None)

    async def _record(self, address: Address) -> StateRecord:
        partition = self._host.find(address.type, address.key)
        activation = partition.activations.get(address.key) if partition is not None else None
        if activation is not None and activation.record is not None and activation.held_by is None:
            return activation.record
        subject = subjects.state(address.type, address.key)
        stored = await self._host.services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
        return decode(stored.data) if stored is not None else StateRecord()


def _stored_headers(message: Message) -> dict[str, str]:
    """Return the headers of the mail that an ask becomes: the sender's, less the broker's own.

    Of what led to it only those are believed who may ask on ``cb.call``: the turns of hosts.
    """
    headers = message.headers or {}
    kept = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
    own_id = headers.get(header.MAIL_ID) or headers.get(header.MSG_ID)
    if own_id:
        # not as a message id: a batch that holds a repeat would be refused whole
        kept[header.MAIL_ID] = own_id
    if message.reply:
        kept[header.REPLY_TO] = message.reply
    if not message.subject.startswith("cb.call."):
        _ = kept.pop(header.CHAIN, None)
    return kept
