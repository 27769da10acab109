"""Streams of one copy on three servers get two more, by a plan that is shown first."""

from __future__ import annotations

from pathlib import Path

import pytest

from callboard.runtime.bus import provision
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.plan import render
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError
from tests.chaos.stage import SETTINGS, staged
from tests.support.eventually import eventually

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


async def apply(bus: Bus, settings: TopologySettings) -> str:
    """Bring the streams to ``settings`` and return the plan as it was shown."""
    shown: list[str] = []

    async def is_done() -> bool:
        try:
            planned = await provision.plan(bus, declared(settings))
            shown.append(render(planned))
            await provision.apply(bus, planned)
        except BusError:
            # servers that have just met refuse to place a stream
            return False
        return True

    await eventually(is_done, within_s=40.0, what="the streams", every_s=0.5)
    return shown[-1]


async def test_replicas_are_raised_and_what_is_stored_stays(tmp_path: Path) -> None:
    one, three = SETTINGS.model_copy(update={"replicas": 1}), SETTINGS.model_copy(update={"replicas": 3})
    async with staged(tmp_path, servers=3) as stage:
        bus = stage.bus
        for name in await bus.stream_names():
            await bus.delete_stream(name)
        await apply(bus, one)
        await bus.store(Write("cb.task.keep", b'"x"'))
        text = await apply(bus, three)
        assert "~ stream CB_WORK\n    replicas: 1 -> 3" in text
        # what is planned again is left over: the copy that one server writes without waiting for its disk
        (left,) = [line for line in (await apply(bus, three)).splitlines() if line[0] in "+~!"]
        assert left.startswith("! stream CB_AUDIT  DESTRUCTIVE: ")
        assert left.endswith("; left as it is unless that is allowed")
        for name, copies in (("CB_WORK", 3), ("CB_ACTORS", 3), ("CB_AUDIT", 1)):
            info = await bus.stream_info(name)
            assert info is not None
            assert info.config.replicas == copies
        kept = await bus.stream_info("CB_WORK")
        assert kept is not None
        assert kept.messages == 1
