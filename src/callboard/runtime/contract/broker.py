"""A broker under test, whichever it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, ConsumerConfig, Delivery, Pull, StreamConfig, Write
from callboard.runtime.contract.eventually import eventually

WORK = StreamConfig(name="W", subjects=("t.>",), retention="workqueue")
LOG = StreamConfig(
    name="L", subjects=("l.>",), allow_atomic=True, allow_direct=True, allow_rollup=True, allow_msg_ttl=True
)
ONCE = StreamConfig(
    name="ONCE",
    subjects=("once.>",),
    max_msgs_per_subject=1,
    discard="new",
    discard_new_per_subject=True,
    allow_direct=True,
    allow_atomic=True,
)


class Broker:
    """Gives connections, and closes them."""

    def __init__(self, kind: str, join: Callable[[str], Awaitable[Bus]]) -> None:
        self.kind = kind
        self._join = join
        self._buses: list[Bus] = []

    async def connect(self) -> Bus:
        bus = await self._join(f"test-{len(self._buses)}")
        self._buses.append(bus)
        return bus

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


class Hands:
    """A consumer's deliveries as a test looks at them."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.pull: Pull

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.data for delivery in self.got]

    @property
    def tokens(self) -> list[str]:
        return [delivery.token for delivery in self.got]

    async def have(self, count: int, *, within_s: float = 5.0) -> None:
        """Wait until ``count`` deliveries have come."""
        await eventually(lambda: len(self.got) >= count, within_s=within_s, what=f"{count} deliveries, got {self.got}")


async def hands(bus: Bus, *, consumer: str = "c", stream: str = "W", credit: int = 0) -> Hands:
    """Return a standing pull that gathers what it gets."""
    taken = Hands()
    taken.pull = await bus.pull(stream, consumer, taken.got.append)
    taken.pull.grant(credit)
    return taken


async def work_queue(bus: Bus, *, ack_wait_s: float = 4.0, max_ack_pending: int = 1000) -> None:
    """Make the work queue ``W`` with the consumer ``c`` on ``t.a``."""
    await bus.create_stream(WORK)
    config = ConsumerConfig(name="c", filter_subject="t.a", ack_wait_s=ack_wait_s, max_ack_pending=max_ack_pending)
    await bus.create_consumer("W", config)


async def fill(bus: Bus, *bodies: bytes, subject: str = "t.a") -> None:
    """Store each body on its own, in order."""
    for body in bodies:
        await bus.store(Write(subject, body))


def cas(subject: str, body: bytes, expected_seq: int) -> Write:
    """Return a write that wants ``expected_seq`` to be its subject's last."""
    return Write(subject, body, header.build(expected_seq=expected_seq))
