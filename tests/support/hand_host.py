"""A host of an actor type played by hand: it takes asks and orders, and answers what a test says."""

from __future__ import annotations

import msgspec

from callboard.runtime import subjects
from callboard.runtime.actor import cursor, record
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message, Subscription, Write
from tests.support.eventually import eventually

GREETER = Address("greeter", "ann")


class HandHost:
    """Hears what is asked and ordered of one type, on a connection of its own; nothing is answered by itself."""

    def __init__(self, bus: Bus, kind: str = "greeter") -> None:
        self.asks: list[Message] = []
        self.orders: list[Message] = []
        self._bus = bus
        self._kind = kind
        self._subscriptions: list[Subscription] = []

    async def open(self) -> HandHost:
        asks = await self._bus.subscribe(subjects.ask(self._kind), self.asks.append, queue="hosts")
        orders = await self._bus.subscribe(subjects.ctl_actor(self._kind), self.orders.append)
        self._subscriptions = [asks, orders]
        return self

    async def close(self) -> None:
        """Go away, connection and all."""
        for subscription in self._subscriptions:
            await subscription.close()
        await self._bus.close()

    async def asked(self, count: int = 1) -> Message:
        """Wait for the ``count``-th ask and return it."""
        await eventually(lambda: len(self.asks) >= count, what=f"{count} asks")
        return self.asks[count - 1]

    async def ordered(self, count: int = 1) -> Message:
        await eventually(lambda: len(self.orders) >= count, what=f"{count} orders")
        return self.orders[count - 1]

    async def answer(self, asked: Message, value: object, **headers: str) -> None:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        await self._bus.publish(asked.reply, msgspec.json.encode(value), headers=named or None)

    async def part(self, asked: Message, number: int, value: object) -> None:
        await self._bus.publish(asked.reply, msgspec.json.encode(value), headers={header.PART: str(number)})

    async def refuse(self, asked: Message, code: str, text: str = "no", kind: str = "") -> None:
        body = {"error": {"code": code, "message": text, "type": kind}}
        await self._bus.publish(asked.reply, msgspec.json.encode(body), headers={header.ERROR: code})


async def put_state(bus: Bus, address: Address, state: StateRecord) -> None:
    """Store an actor's record, whatever stands there."""
    await bus.store(Write(subjects.state(address.type, address.key), record.encode(state)))


async def put_cursor(bus: Bus, address: Address, owner: str, *, epoch: int = 3, partitions: int = 16) -> None:
    where = subjects.cursor(address.type, address.partition(partitions))
    await bus.store(Write(where, cursor.encode(cursor.Cursor(owner=owner, epoch=epoch))))
