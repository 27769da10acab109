"""Pings to those whose life is in doubt; what comes back goes to ``Liveness``."""

from __future__ import annotations

import asyncio

import msgspec

from callboard.runtime import subjects
from callboard.runtime.actor.liveness import Liveness
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import Accusation
from callboard.runtime.errors import (
    BusError,
    BusTimeoutError,
    InvalidNameError,
    NoRespondersError,
    PermissionDeniedError,
)

PING_EVERY_S = 0.25
# A worker that has just begun asks sooner: until it was answered it cannot tell a death from a way that is broken.
FIRST_EVERY_S = 0.05
FIRST_S = 2.0
# More at a time are left to the next rounds, and to their beats.
MAX_PINGS = 64
# Longer names of servers are cut.
MAX_NAME_BYTES = 256


class Pinger:
    """Pings the suspects of one worker's ``Liveness``, on the loop that feeds it."""

    def __init__(self, bus: Bus, liveness: Liveness, *, clock: Clock = SYSTEM_CLOCK, me: str) -> None:
        """Prepare; nothing is sent before ``run``.

        Args:
            bus: Carries the pings.
            liveness: Says whom to ping and is told what came of it.
            clock: Time; the one by which ``liveness`` is fed.
            me: Our own name, for those whom we tell of a suspicion.
        """
        self._bus = bus
        self._liveness = liveness
        self._clock = clock
        self._me = me
        self._asked: set[str] = set()
        self._is_refused = False

    async def run(self) -> None:
        """Ping four times a second until cancelled, at first more often; returns only if our user may not ping.

        A ping that a server answers with "nobody listens" is noted as unanswered, one that times out is not noted:
        somebody is there and slow. The first unanswered one is told on ``cb.ctl.dead``, so that the others look too.
        """
        began_s = self._clock.monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._is_refused:
                now_s = self._clock.monotonic()
                if self._bus.is_connected:
                    for worker in sorted(self._liveness.suspects(now_s) - self._asked)[:MAX_PINGS]:
                        self._asked.add(worker)
                        _ = group.create_task(self._ping(worker, now_s), name=f"ping-{worker}")
                await self._clock.sleep(PING_EVERY_S if now_s - began_s >= FIRST_S else FIRST_EVERY_S)

    async def _ping(self, worker: str, now_s: float) -> None:
        via, connected_s = self._bus.server.name, self._bus.connected_at
        try:
            answered, server = await self._ask(worker)
            if answered is None or self._bus.connected_at != connected_s:
                return
            if self._liveness.pinged(worker, now_s, answered=answered, via=via, server=server):
                await self._bus.publish(subjects.CTL_DEAD, msgspec.json.encode(Accusation(worker=worker, by=self._me)))
        except PermissionDeniedError:
            self._is_refused = True
        except (BusError, InvalidNameError):
            # a broken link says nothing of others; a name that is no name came in somebody's beat
            return
        finally:
            self._asked.discard(worker)

    async def _ask(self, worker: str) -> tuple[bool | None, str]:
        """Return whether it is there, None when that stays unknown, and the name of its server if it says it."""
        try:
            answer = await self._bus.request(subjects.ping(worker), timeout_s=PING_EVERY_S)
        except NoRespondersError:
            return False, ""
        except BusTimeoutError:
            return None, ""
        return True, answer.data[:MAX_NAME_BYTES].decode(errors="replace")
