"""The door for asks: any host of a type takes one, stores it as mail, and its actor's owner answers the caller."""

from __future__ import annotations

from collections.abc import Mapping

from callboard.runtime import subjects
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.commit import Committed, Refused, Result
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.mail import mail_write
from callboard.runtime.actor.partition import Stage
from callboard.runtime.actor.record import Reply, ReplyError, StateRecord, decode
from callboard.runtime.actor.run import call_hook
from callboard.runtime.actor.state import actor_of
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Message, Subscription
from callboard.runtime.errors import BusError, CallboardError, MailboxFullError, UnknownMessageError
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
            subject = subjects.ask(name)
            self._subscriptions.append(await self._host.services.bus.subscribe(subject, self._on_ask, queue="hosts"))

    async def close(self) -> None:
        """Take no more asks; those taken are stored and answered."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.close()

    def _on_ask(self, message: Message) -> None:
        services = self._host.services
        _, _, name, token = message.subject.split(".", 3)
        kind = self._host.types.get(name)
        if kind is None:
            return
        headers = message.headers or {}
        address = Address(name, subjects.unescape(token))
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
        full = self._full(kind, address)
        if full is not None:
            self._refuse(message, full)
            return
        write = mail_write(address, message.data, _stored_headers(headers, message.reply))
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
            reply = Reply(id="", error=ReplyError(code=error.code, message=str(error)))
            _ = self._host.services.spawn(replies.send(self._host.services, message.reply, reply), "ask-refuse")

    async def _read(self, message: Message, kind: ActorType, address: Address, handler: Handler, data: bytes) -> None:
        """Run a read-only handler on the state that stands, beside whatever turn is under way."""
        services = self._host.services
        headers = message.headers or {}
        try:
            record = await self._record(address)
            actor = await actor_of(kind, address, record, services.blobs)
            argument = kind.decode(handler, headers.get(header.TYPE), data, headers.get(header.CONTENT_TYPE))
            reply = replies.value_reply("", await call_hook(handler, actor, argument))
        except CallboardError as error:
            reply = Reply(id="", error=ReplyError(code=error.code, message=str(error)))
        except Exception as error:  # noqa: BLE001 - a user's handler may raise anything; it is data from here on
            failure = failure_of(error)
            name = failure.type if isinstance(failure.type, str) else ""
            reply = Reply(id="", error=ReplyError(code=failure.code, message=failure.message, type=name))
        if message.reply:
            await replies.send(services, message.reply, reply)

    async def _record(self, address: Address) -> StateRecord:
        partition = self._host.find(address.type, address.key)
        activation = partition.activations.get(address.key) if partition is not None else None
        if activation is not None and activation.record is not None and activation.held_by is None:
            return activation.record
        subject = subjects.state(address.type, address.key)
        stored = await self._host.services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
        return decode(stored.data) if stored is not None else StateRecord()


def _stored_headers(headers: Mapping[str, str], reply_to: str) -> dict[str, str]:
    """Return the headers of the mail that an ask becomes: the sender's, less the broker's own."""
    kept = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
    own_id = headers.get(header.MAIL_ID) or headers.get(header.MSG_ID)
    if own_id:
        # not as a message id: a batch that holds a repeat would be refused whole
        kept[header.MAIL_ID] = own_id
    if reply_to:
        kept[header.REPLY_TO] = reply_to
    return kept
