"""Pools by label in one worker: opened when there is work for them, on the slots of their capability.

Nobody declares them. A worker looks at what lies on the broker, every ten seconds and when a submitter says that it
asks for labels, and opens the pools of its capabilities whose labels it bears. What nobody alive bears is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from callboard.runtime import backlog, events, subjects
from callboard.runtime.beat import Beat
from callboard.runtime.bus.base import Bus, Message, Subscription
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError, PermissionDeniedError, TopologyError
from callboard.runtime.labels import fits, split
from callboard.runtime.logs import get_logger
from callboard.runtime.provide import Refusals

LOOK_S = 10.0
# a submitter's wish is followed within this
WISH_S = 0.25
# after this long every worker has been heard and every fitting one has looked
PATIENCE_S = 15.0
# a beat counts for this long
_ALIVE_S = 3.5

_log = get_logger(__name__)


class LabelPools:
    """Follows the pools by label of one worker's capabilities.

    Attributes:
        opened: Names of those that are open here.
        unmatched: Tasks waiting in pools by label that no worker alive bears the labels for, by name.
    """

    def __init__(
        self,
        bus: Bus,
        capabilities: frozenset[str],
        *,
        labels: Mapping[str, str],
        open_pool: Callable[[str], Awaitable[None]],
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            bus: The worker's connection.
            capabilities: What the worker serves.
            labels: What it bears.
            open_pool: Opens a pool by label, its consumers too.
            clock: Time.
        """
        self.opened: set[str] = set()
        self.unmatched: dict[str, int] = {}
        self._bus = bus
        self._capabilities = capabilities
        self._labels = dict(labels)
        self._open_pool = open_pool
        self._clock = clock
        self._began_s = clock.monotonic()
        self._others: dict[str, tuple[float, Beat]] = {}
        self._is_wished = False
        self._refused = Refusals(clock)
        self._suspects: frozenset[str] = frozenset()
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Open what is known already, and listen for what is asked for.

        Raises:
            BusError: If the broker does not answer.
        """
        self._subscription = await self._bus.subscribe(subjects.CTL_POOLS, self._on_wish)
        await self.look()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        next_s = self._clock.monotonic() + LOOK_S
        while True:
            await self._clock.sleep(WISH_S)
            if not self._is_wished and self._clock.monotonic() < next_s:
                continue
            self._is_wished = False
            next_s = self._clock.monotonic() + LOOK_S
            try:
                await self.look()
            except BusError as error:
                _log.debug(events.POOL_UNSEEN, code=error.code)

    async def close(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self._subscription.close()

    async def look(self) -> None:
        """Open the pools that fit and are not open yet, and count what fits nobody. Four requests.

        Raises:
            BusError: If the broker does not answer.
        """
        waiting = await backlog.labelled(self._bus, self._capabilities)
        for name in backlog.fitting(waiting, self._labels):
            if name not in self.opened and not self._refused.holds(name):
                await self._open(name)
        self._count_unmatched(waiting)

    async def _open(self, name: str) -> None:
        self.opened.add(name)
        try:
            await self._open_pool(name)
        except BusError as error:
            self.opened.discard(name)
            if not isinstance(error, PermissionDeniedError | TopologyError):
                raise
            # its user serves the capability and not this pool of it: the others go on
            self._refused.add(name, error)

    def hear(self, beat: Beat) -> None:
        """Take in another worker's beat: what it bears, and what it serves."""
        if beat.status == "stopped":
            self._others.pop(beat.worker, None)
        else:
            self._others[beat.worker] = self._clock.monotonic(), beat

    def _on_wish(self, message: Message) -> None:
        name = message.data.decode("ascii", errors="replace")
        base, wanted = split(name)
        if wanted and base in self._capabilities and name not in self.opened and fits(self._labels, wanted):
            self._is_wished = True

    def _count_unmatched(self, waiting: Mapping[str, int]) -> None:
        now_s = self._clock.monotonic()
        self._others = {worker: seen for worker, seen in self._others.items() if now_s - seen[0] <= _ALIVE_S}
        if now_s - self._began_s < PATIENCE_S:
            # whoever bears them may not have been heard yet
            return
        lonely = {name: count for name, count in waiting.items() if count and not self._is_borne(name)}
        # seen twice: a group of workers may just be starting one for it
        found = {name: count for name, count in lonely.items() if name in self._suspects}
        self._suspects = frozenset(lonely)
        for name in found.keys() - self.unmatched.keys():
            _log.warning(events.TASK_UNMATCHED, capability=name, waiting=found[name])
        self.unmatched = found

    def _is_borne(self, name: str) -> bool:
        base, wanted = split(name)
        if fits(self._labels, wanted):
            return True
        return any(
            fits(beat.labels, wanted) and any(load.name == base for load in beat.capabilities)
            for _, beat in self._others.values()
        )
