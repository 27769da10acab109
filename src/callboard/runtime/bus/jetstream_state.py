"""What becomes of the connection: its ups and downs, who is told of them, and when it is taken for dead."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from callboard.runtime import events
from callboard.runtime.bus.jetstream_link import WHO, Part, Proof
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusClosedError

_TICK_S = 0.5
_STALLED_S = 8.0
# JetStream timeouts in a row, and the silence they must span, before the node is taken for cut off.
_UNANSWERED = 3
_SILENT_S = 1.0
# How often other servers are asked for a leader, and after how long we go to another one without.
_SEEK_EVERY_S = 0.3
_SEEK_S = 10.0


class LinkState(ABC):
    """The part of the link that needs no client: a client tells it what happens, and is told what to do."""

    def __init__(
        self, *, servers: str, clock: Clock, on_event: Callable[[str, dict[str, object]], None] | None
    ) -> None:
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.is_up = False
        self.connected_at = clock.monotonic()
        self._servers = servers
        self._on_event = on_event
        self._parts: list[Part] = []
        self._standing: set[int] = set()
        self._is_listening = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._is_reviving = False
        self._down_at = self._progress_at = self._answered_at = self.connected_at
        self._unanswered = 0
        self._proof: Proof | None = None
        self._is_seeking = False

    def __repr__(self) -> str:
        return f"<link to {self._servers} {'up' if self.is_up else 'down'}>"

    @abstractmethod
    def _has_link(self) -> bool:
        """Whether the client is connected."""

    @abstractmethod
    def _entered(self) -> None:
        """The link stands."""

    @abstractmethod
    def _left(self) -> None:
        """The link is lost."""

    @abstractmethod
    async def _leave(self, to: str = "") -> None:
        """Give up a node that seems cut off, for the server at ``to``, or for any other if there is one."""

    @abstractmethod
    def _others(self) -> list[str]:
        """The addresses of the cluster's other servers, as far as they are known."""

    @abstractmethod
    async def _scout(self, urls: Sequence[str], proof: Proof) -> str | None:
        """Return which of these servers reaches a leader, "" when none does, None when none can be asked.

        May keep connections for the next look.
        """

    @abstractmethod
    async def _recall(self) -> None:
        """Give up what ``_scout`` kept."""

    @abstractmethod
    async def _replace(self) -> None:
        """Put a new client in the place of one that will not come back, and ``_rise``."""

    @property
    def servers(self) -> list[str]:
        """The addresses we were given, without secrets."""
        return self._servers.split(", ")

    # --- for the parts

    def attach(self, part: Part, *, is_standing: bool = False) -> None:
        """Tell ``part`` about the connection from now on; ``is_standing`` means that it waits for what may come."""
        self._parts.append(part)
        if is_standing:
            self._standing.add(id(part))

    def detach(self, part: Part) -> None:
        """Stop telling it."""
        if part in self._parts:
            self._parts.remove(part)
            self._standing.discard(id(part))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run ``work`` beside; it is cancelled when the link closes, and an error of it is reported."""
        if self._is_closed:
            work.close()
            return
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def report(self, event: str, fields: dict[str, object]) -> None:
        """Tell whoever watches the bus."""
        if self._on_event is not None:
            try:
                self._on_event(event, fields)
            except Exception as error:  # noqa: BLE001 - we may be inside the client, which an error would end
                self.loop.call_exception_handler({"message": f"on_event raised at {event}", "exception": error})

    # --- is JetStream there

    def unproven_s(self, now: float) -> float:
        """Return for how long no leader has answered while somebody waits for what may come; 0 when nobody does."""
        if self._is_seeking:
            return math.inf
        return now - self._answered_at if self._standing or self._is_listening else 0.0

    def listening(self) -> None:
        """Somebody listens by this connection: from now on it is no use on a server that is cut off."""
        self._is_listening = True

    def answered(self, *, is_leader: bool = True) -> None:
        """A leader has answered a request; or, without ``is_leader``, a server that says that it reaches none."""
        if not is_leader:
            # as good as silence: a node that is cut off begins to say so after ten seconds
            self.unanswered()
            return
        self._unanswered = 0
        self._answered_at = self.clock.monotonic()

    def unanswered(self) -> None:
        """A request to JetStream ran into its timeout."""
        self._unanswered += 1
        silent_s = self.clock.monotonic() - self._answered_at
        if self._unanswered < _UNANSWERED or silent_s < _SILENT_S or not self.is_up:
            return
        # A node cut off from its peers keeps its clients for ever, while the link itself is healthy.
        self._unanswered = 0
        if not self._is_seeking:
            self._is_seeking = True
            self.spawn(self._seek(self.connected_at), "bus-seek-leader")

    def proving(self, proof: Proof) -> None:
        """Take what to ask other servers, when ours is in doubt."""
        self._proof = proof

    async def _seek(self, since: float) -> None:
        """Go to a server that reaches a leader, as soon as there is one, and stay when ours does.

        A cluster that is choosing a leader is as silent as a cut. Leaving would then only cost the link, and may lead
        to the server that is cut off.
        """
        began = self.clock.monotonic()
        found: str | None = ""
        try:
            while found == "" and self.clock.monotonic() - began < _SEEK_S:
                found = await self._look()
                if self._is_closed or not self.is_up or self.connected_at != since or self._answered_at > began:
                    return
                if found == "":
                    await self.clock.sleep(_SEEK_EVERY_S)
            silent_s = round(self.clock.monotonic() - self._answered_at, 1)
            self.report(events.BUS_RECONNECT_FORCED, {"server": self._servers, "silent_s": silent_s, "to": found or ""})
            await self._leave(found or "")
        finally:
            self._is_seeking = False
            await self._recall()

    async def _look(self) -> str | None:
        """Return a server that reaches a leader, "" when none does; None when there is nobody or nothing to ask."""
        others = self._others()
        if not others or self._proof is None or not self._proof.subject:
            return None
        return await self._scout(others, self._proof)

    async def renew(self) -> None:
        """Leave the server, for another if there is one. Returns at once; harmless when the link is down."""
        if self._is_closed:
            message = "this bus was closed"
            raise BusClosedError(message)
        if self.is_up:
            self.report(events.BUS_RECONNECT_FORCED, {"server": self._servers, "reason": "it passes nothing on"})
            await self._leave()

    # --- ups and downs

    def _fall(self) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self._down_at = self._progress_at = self.clock.monotonic()
        self._left()
        self.report(events.BUS_DISCONNECTED, {"server": self._servers})
        for part in list(self._parts):
            part.went_down()

    def _stand(self) -> None:
        self.is_up = True
        self.connected_at = self._answered_at = self.clock.monotonic()
        self._unanswered = 0
        self._entered()

    def _rise(self) -> None:
        # Between two ticks the client may lose and regain the link without a word.
        self._fall()
        self._stand()
        away_s = round(self.connected_at - self._down_at, 3)
        self.report(events.BUS_RECONNECTED, {"server": self._servers, "away_s": away_s})
        for part in list(self._parts):
            part.came_up()

    async def _watch(self) -> None:
        while not self._is_closed:
            await self.clock.sleep(_TICK_S)
            now = self.clock.monotonic()
            if self.is_up and not self._has_link():
                self._fall()
            if not self.is_up and now - self._progress_at > _STALLED_S:
                # It waits for a socket that will not close, or its reconnecting task died of an error.
                self._revive("the client hangs")
            for part in list(self._parts):
                part.tick(now)

    def _revive(self, reason: str) -> None:
        if not self._is_reviving:
            self._is_reviving = True
            self.report(events.BUS_RECONNECT_FORCED, {"server": self._servers, "reason": reason})
            self.spawn(self._replace(), "bus-replace-client")

    def _deny(self, kind: str, subject: str) -> None:
        verb = "publish on" if kind == "publish" else "subscription to"
        message = f"the server's permissions refuse {verb} {subject!r}"
        if subject != WHO.lower():
            self.report(events.BUS_REFUSED, {"subject": subject, "message": message})
        for part in list(self._parts):
            part.denied(subject, message)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.report(events.BUS_FAILED, {"code": "task", "message": f"{task.get_name()}: {error!r}"})


async def within(work: Coroutine[Any, Any, None], limit_s: float) -> None:
    """Run what may hang or fail without harm, and give it up after ``limit_s``."""
    task = asyncio.get_running_loop().create_task(work, name="bus-within")
    await asyncio.wait({task}, timeout=limit_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
