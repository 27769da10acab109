"""A worker that begins while another has just made a consumer: until that has a leader nobody speaks for it."""

from __future__ import annotations

from typing import cast

import pytest

from callboard.runtime.bus import provision
from callboard.runtime.bus.base import Bus, ConsumerConfig, ConsumerInfo
from callboard.runtime.errors import BusTimeoutError

CONSUMER = ConsumerConfig(name="c", filter_subject="q.a")


class Silent:
    """A bus that leaves the first ``times`` questions about a consumer unanswered."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.made = 0

    async def consumer_info(self, _stream: str, name: str) -> ConsumerInfo | None:
        self.left -= 1
        if self.left >= 0:
            message = "no answer"
            raise BusTimeoutError(message)
        return cast("ConsumerInfo", object()) if name == "c" else None

    async def create_consumer(self, _stream: str, _config: ConsumerConfig) -> None:
        self.made += 1


async def test_a_consumer_that_has_no_leader_yet_is_asked_about_again() -> None:
    bus = Silent(2)
    await provision.ensure_consumer(cast("Bus", bus), "Q", CONSUMER, capability="a")
    assert not bus.made


async def test_one_that_stays_silent_is_an_error() -> None:
    with pytest.raises(BusTimeoutError):
        await provision.ensure_consumer(cast("Bus", Silent(9)), "Q", CONSUMER, capability="a")
