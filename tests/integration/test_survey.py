"""Metrics of what the broker holds: true to it, and a warning before a stream refuses or drops anything."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from callboard.runtime import dead, events, metrics, subjects
from callboard.runtime.bus.base import Bus, StreamConfig, StreamInfo, Write
from callboard.runtime.bus.topology import FULL_SHARE, LOW_HOURS
from callboard.runtime.capability import Capability
from callboard.runtime.errors import BusError, PermissionDeniedError, TerminalError
from callboard.runtime.metrics import WorkerView
from callboard.runtime.survey import EVERY_S, StreamRoom, Surveyor
from callboard.runtime.testing import FakeClock
from tests.support.eventually import eventually
from tests.support.world import World

BODY = b"x" * 900
LIMIT_BYTES = 64 * 1024
ALL = (subjects.WORK, subjects.LATER, subjects.LEDGER, subjects.DEAD, subjects.ACTORS)

Shown = dict[tuple[str, str], float]


def shown(surveyor: Surveyor) -> Shown:
    """Return what a scrape shows, by metric and label."""
    text = metrics.render(lambda: WorkerView(worker="w1"), lambda: surveyor.tables("w1")).decode()
    return {
        (sample.name.removeprefix("callboard_"), next((v for k, v in sample.labels.items() if k != "worker"), "")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("callboard_")
    }


def alerts(found: Shown, stream: str) -> bool:
    """Return whether the alerts of ``docs/metrics.md`` would fire."""
    used = found["stream_bytes", stream] / found["stream_limit_bytes", stream]
    return used > FULL_SHARE or found.get(("stream_left_hours", stream), LOW_HOURS) < LOW_HOURS


async def fail(number: int) -> None:
    message = f"never {number}"
    raise TerminalError(message)


async def test_queues_dead_letters_and_streams_are_shown_as_the_broker_has_them(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Capability(fail, name="fails"))
    for number in range(3):
        await world.client.submit("fails", number)
    for _ in range(4):
        await world.client.submit("nobody", 1)

    async def are_dead() -> bool:
        return len(await dead.letters(world.bus, limit=9)) == 3

    await eventually(are_dead)
    surveyor = Surveyor(ALL, agents=lambda: {"idle": 2}, clock=world.clock)
    assert shown(surveyor).keys().isdisjoint({("dead_letters", "")})

    async def is_settled() -> bool:
        await surveyor.look(world.bus)
        return shown(surveyor)["queue_claimed", "fails"] == 0

    await eventually(is_settled)
    found = shown(surveyor)
    assert found["queue_waiting", "nobody"] == 4
    assert found["queue_oldest_seconds", "nobody"] > 0
    assert (found["queue_waiting", "fails"], found["queue_oldest_seconds", "fails"]) == (0, 0)
    assert found["queue_deliveries_total", "fails"] == 3
    assert (found["dead_letters", ""], found["agents", "idle"]) == (3, 2)
    for name in ALL:
        info = await world.bus.stream_info(name)
        assert info is not None
        assert (found["stream_messages", name], found["stream_bytes", name]) == (info.messages, info.size_bytes)
    assert (
        found["stream_limit_bytes", subjects.WORK] - found["stream_bytes", subjects.WORK]
        == (found["stream_left_bytes", subjects.WORK])
    )
    assert ("stream_limit_bytes", subjects.ACTORS) not in found


async def _is_lost_at(bus: Bus, name: str, surveyor: Surveyor) -> tuple[int, int]:
    """Fill a stream; return at which look the alert came, and before which one something was refused or dropped."""
    warned_at = 0
    for look in range(1, 200):
        await surveyor.look(bus)
        if not warned_at and alerts(shown(surveyor), name):
            warned_at = look
        try:
            await bus.store(Write(f"small.{look}", BODY))
        except BusError:
            return warned_at, look
        info = await bus.stream_info(name)
        assert info is not None
        if info.first_seq > 1:
            return warned_at, look
    return warned_at, 0


@pytest.mark.parametrize("discard", ["new", "old"])
async def test_a_stream_that_fills_up_is_warned_of_before_the_first_loss(
    callboard_world: World, discard: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="callboard.runtime.survey")
    bus = callboard_world.bus
    config = StreamConfig(
        name="SMALL", subjects=("small.>",), max_bytes=LIMIT_BYTES, discard="new" if discard == "new" else "old"
    )
    await bus.create_stream(config)
    surveyor = Surveyor(["SMALL"], clock=callboard_world.clock)
    warned, lost = await _is_lost_at(bus, "SMALL", surveyor)
    assert 0 < warned < lost - 5
    assert sum(events.STREAM_FILLED_UP in record.getMessage() for record in caplog.records) == 1
    # the alert is no alarm that always rings
    assert warned > 20
    found = surveyor.latest
    assert found is not None
    assert found.streams[0].when_full == (
        "writes are refused" if discard == "new" else "the oldest messages are dropped"
    )


async def test_what_may_not_be_seen_is_left_out_and_not_asked_for_again(callboard_world: World) -> None:
    asked: Counter[str] = Counter()

    class Guarded:
        """A bus whose user may see one stream."""

        async def stream_info(self, name: str) -> object:
            asked[name] += 1
            if name != subjects.WORK:
                raise PermissionDeniedError(name, subject=name)
            return await callboard_world.bus.stream_info(name)

        async def consumers(self, stream: str) -> list[object]:
            asked["consumers"] += 1
            raise PermissionDeniedError(stream, subject=stream)

    surveyor = Surveyor((subjects.WORK, subjects.LEDGER), clock=callboard_world.clock)
    for _ in range(3):
        await surveyor.look(Guarded())  # type: ignore[arg-type]  # all that a look needs
    assert surveyor.latest is not None
    assert [room.name for room in surveyor.latest.streams] == [subjects.WORK]
    assert (asked[subjects.WORK], asked[subjects.LEDGER]) == (3, 1)


class Growing:
    """A bus with one stream of a given size."""

    size_bytes = 0

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._began = clock.now() - timedelta(days=20)

    async def stream_info(self, name: str) -> StreamInfo:
        config = StreamConfig(name=name, subjects=("s",), max_bytes=1_000_000)
        return StreamInfo(
            config=config, messages=1, size_bytes=self.size_bytes, first_seq=1, last_seq=1, consumers=0,
            first_time=self._began,
        )  # fmt: skip

    async def consumers(self, stream: str) -> list[object]:
        raise PermissionDeniedError(stream, subject=stream)


async def test_the_hours_left_follow_the_growth_of_the_last_ten_minutes() -> None:
    clock = FakeClock()
    bus = Growing(clock)
    surveyor = Surveyor(["SMALL"], clock=clock)
    said: list[float | None] = []
    sizes = [100_000] * 10 + [100_000 + 250 * n for n in range(1, 81)] + [120_000] * 45
    for size in sizes:
        bus.size_bytes = size
        found = await surveyor.look(bus)  # type: ignore[arg-type]  # all that a look needs
        said.append(found.streams[0].hours_left)
        await clock.advance(EVERY_S)
    # it took 20 days to get there, so it would be months until it is full; 60,000 bytes an hour make it 15 hours
    assert said[9] is not None
    assert said[9] > 1000
    assert said[89] == pytest.approx(880_000 / 60_000)
    assert said[-1] is not None
    assert said[-1] > 1000


def test_room_is_low_by_share_or_by_time() -> None:
    def room(size: int, limit: int | None, hours: float | None) -> StreamRoom:
        left = None if limit is None else limit - size
        return StreamRoom(
            name="S", messages=1, size_bytes=size, limit_bytes=limit, bytes_left=left, hours_left=hours, when_full=""
        )

    assert room(81, 100, None).is_low
    assert room(1, 100, 23.0).is_low
    assert not room(80, 100, 25.0).is_low
    assert not room(10**12, None, None).is_low
