"""Keep every claim ours while we work on it: extensions, answers to "who holds this?", heartbeats.

The keeper runs on an event loop of its own in a thread of its own, over a connection of its own, so that a handler that
blocks the worker's loop keeps its lease. It stops extending when that loop has been dead for ``max_block_s``.

It is also what others see of the worker's life: it beats, answers pings, and leaves a server that does not pass its
beats on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from callboard.runtime import crash, events, logs, subjects
from callboard.runtime.bus.base import Bus, Message, Subscription
from callboard.runtime.claim import Claim, Stage
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import BusError, CallboardError, PermissionDeniedError

_log = logs.get_logger(__name__)

BEAT_EVERY_S = 1.0
TICK_S = 0.1
# Our own beats stay away this long: the server hangs, or is cut off. Others would take us for dead at 3 s.
ECHO_TIMEOUT_S = 1.6
FORCE_EVERY_S = 4.0
# After a tick later than this we may have been stopped ourselves, with the echo waiting unread.
_LATE_TICK_S = 0.5


class HoldsQuestion(Struct, frozen=True):
    """Body of ``cb.ctl.holds``: who runs these tasks?

    Attributes:
        seqs: Beside each task, which message of it asks (0: any).
        turns: Beside each task, the broker's delivery count of that message (0: any).
        worker: Who asks.
    """

    tasks: list[str]
    seqs: list[int] = []
    turns: list[int] = []
    worker: str = ""


class HoldsAnswer(Struct, frozen=True):
    """Answer to it: which of the asked tasks this worker is running."""

    worker: str
    held: list[str]


_question = msgspec.json.Decoder(HoldsQuestion)


class LeaseKeeper:
    """The claims of a worker process and what keeps them. ``claims`` is written by the worker's loop alone.

    Attributes:
        loop_ticked_at: Monotonic seconds of the worker loop's last sign of life; the worker sets it.
        stalled_at: Monotonic seconds when that loop last went on after a long silence; the worker sets it.
        late_extensions: How often a lease came within a second of lapsing.
        server: Name of the server that it is connected to, "" while that is not known.
    """

    def __init__(
        self,
        worker: str,
        *,
        ack_wait_s: float,
        extend_every_s: float,
        max_block_s: float,
        clock: Clock = SYSTEM_CLOCK,
        beat: Callable[[], bytes] | None = None,
    ) -> None:
        """Prepare; nothing runs before ``serve``."""
        self.worker = worker
        self.claims: dict[str, Claim] = {}
        self.loop_ticked_at = clock.monotonic()
        self.stalled_at = float("-inf")
        self.late_extensions = 0
        self.server = ""
        self._is_released = False
        self._ack_wait_s = ack_wait_s
        self._extend_every_s = extend_every_s
        self._max_block_s = max_block_s
        self._clock = clock
        self._beat = beat
        self._answers: list[tuple[str, bytes]] = []
        self._answers_due = asyncio.Event()

    def add(self, claim: Claim) -> None:
        """Keep this claim from now on."""
        self.claims[claim.token] = claim
        if crash.point:
            crash.at("claimed")

    def drop(self, claim: Claim) -> None:
        """Stop keeping it; harmless when it is not kept."""
        self.claims.pop(claim.token, None)

    def has_lapsed(self, claim: Claim) -> bool:
        """Return whether the broker may have given the claim to somebody else since it came to us.

        Once overdue is overdue for good: a late extension is accepted by the broker and acts on whoever has it now.
        """
        return claim.is_stale or self._clock.monotonic() - claim.extended_at > self._ack_wait_s

    def holds(
        self, task: str, *, seq: int = 0, turn: int = 0, worker: str | None = None, asker: Claim | None = None
    ) -> bool:
        """Return whether this process is running ``task``, or is about to and goes before the one that asks.

        Of two deliveries that are both being asked about, the message that came first goes before the other; of one
        message the earlier delivery; of two that both look like the first (their server forgot one), the worker whose
        name is smaller. A question from who goes first, heard while we ask ourselves, makes our claim yield.
        """
        goes_first = asker is not None or bool(worker and self.worker < worker)
        for claim in list(self.claims.values()):
            if claim is asker:
                goes_first = False
            if claim.task_id != task or claim is asker:
                continue
            if claim.is_stale and claim.stage in (Stage.SCREENING, Stage.READY):
                # it will not be run here
                continue
            mine, other = (claim.delivery.seq, claim.delivery.delivered if turn else 0), (seq, turn)
            if seq and turn and worker not in (None, self.worker) and (other, worker) < (mine, self.worker):
                # our own question was answered before this delivery was seen there: it lay in a socket
                claim.must_yield = True
            if claim.is_chosen or claim.stage in (Stage.RUNNING, Stage.SETTLING, Stage.READY):
                return True
            if seq and (mine < other or (mine == other and turn and goes_first)):
                return True
        return False

    def due(self, now_s: float) -> list[Claim]:
        """Return the claims to extend now; none when the worker's loop is dead."""
        is_dead = now_s - self.loop_ticked_at > self._max_block_s
        if is_dead != self._is_released:
            self._is_released = is_dead
            if is_dead:
                _log.error(events.LEASE_RELEASED, tasks=len(self.claims), blocked_s=round(now_s - self.loop_ticked_at))
        if is_dead:
            return []
        limit_s = now_s - self._extend_every_s
        return [claim for claim in list(self.claims.values()) if claim.extended_at <= limit_s]

    async def serve(self, bus: Bus, *, stop: Callable[[], bool]) -> None:
        """Extend, answer and beat until ``stop()``; broker errors are outlived."""
        self._answers_due = asyncio.Event()
        echo = _Echo(self._clock.monotonic())
        subscriptions = await self._listen(bus, echo)
        answering = asyncio.create_task(self._answer(bus), name="keeper-answers")
        try:
            while not stop():
                now_s = self._clock.monotonic()
                with contextlib.suppress(BusError):
                    await self._extend(bus, now_s)
                    await self._show_life(bus, echo, now_s)
                await self._clock.sleep(TICK_S)
        finally:
            answering.cancel()
            await asyncio.wait([answering])
            for subscription in subscriptions:
                await subscription.close()

    async def _listen(self, bus: Bus, echo: _Echo) -> list[Subscription]:
        subscriptions = [await bus.subscribe(subjects.CTL_HOLDS, self._on_question)]
        if self._beat is None:
            return subscriptions
        # A user without leave for these is watched by its beats alone; the bus has told of the refusal.
        with contextlib.suppress(PermissionDeniedError):
            subscriptions.append(await bus.subscribe(subjects.ping(self.worker), self._on_ping))
        with contextlib.suppress(PermissionDeniedError):
            subscriptions.append(await bus.subscribe(subjects.beat(self.worker), lambda _: self._on_echo(echo)))
            echo.is_expected = True
        return subscriptions

    async def _show_life(self, bus: Bus, echo: _Echo, now_s: float) -> None:
        """Beat when it is time, and at once after a reconnect; leave the server when the beats do not come back."""
        if self._beat is None:
            return
        if now_s >= echo.beat_due_s or bus.connected_at > echo.beaten_s:
            echo.beaten_s = now_s
            echo.beat_due_s = now_s + BEAT_EVERY_S
            self.server = bus.server.name
            await bus.publish(subjects.beat(self.worker), self._beat())
        if bus.is_connected and echo.is_missing(now_s, connected_s=bus.connected_at):
            await bus.reconnect()

    def _on_ping(self, message: Message) -> None:
        if message.reply:
            # who has not heard a beat of ours yet learns by it what our silence would mean
            self._answers.append((message.reply, self.server.encode()))
            self._answers_due.set()

    def _on_echo(self, echo: _Echo) -> None:
        echo.heard_s = self._clock.monotonic()

    async def _answer(self, bus: Bus) -> None:
        while True:
            await self._answers_due.wait()
            self._answers_due.clear()
            answers, self._answers = self._answers, []
            for subject, data in answers:
                with contextlib.suppress(BusError):
                    await bus.publish(subject, data)

    async def _extend(self, bus: Bus, now_s: float) -> None:
        due = self.due(now_s)
        for claim in due:
            claim.is_stale = claim.is_stale or now_s - claim.extended_at > self._ack_wait_s
        # a run that is under way goes on and is kept: whoever got the task meanwhile asks us before running it
        due = [claim for claim in due if not claim.is_stale or claim.stage in (Stage.RUNNING, Stage.SETTLING)]
        if not due or not bus.is_connected:
            return
        await bus.extend([claim.token for claim in due])
        late = [now_s - claim.extended_at for claim in due if now_s - claim.extended_at > self._ack_wait_s - 1.0]
        for claim in due:
            claim.extended_at = now_s
        if late:
            self.late_extensions += len(late)
            _log.warning(events.LEASE_EXTENDED_LATE, tasks=len(late), silent_s=round(max(late), 1))

    def _on_question(self, message: Message) -> None:
        if not message.reply:
            return
        try:
            question = _question.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        seqs = question.seqs or [0] * len(question.tasks)
        turns = question.turns or [0] * len(question.tasks)
        asked = zip(question.tasks, seqs, turns, strict=False)
        held = [task for task, seq, turn in asked if self.holds(task, seq=seq, turn=turn, worker=question.worker)]
        answer = HoldsAnswer(self.worker, held)
        self._answers.append((message.reply, msgspec.json.encode(answer)))
        self._answers_due.set()


class _Echo:
    """Our own beats, sent and come back."""

    def __init__(self, now_s: float) -> None:
        self.is_expected = False
        self.heard_s = now_s
        self.beaten_s = float("-inf")
        self.beat_due_s = float("-inf")
        self._ticked_s = now_s
        self._forced_s = float("-inf")

    def is_missing(self, now_s: float, *, connected_s: float) -> bool:
        """Return whether to force a reconnect; True at most once every ``FORCE_EVERY_S``."""
        if now_s - self._ticked_s > _LATE_TICK_S:
            self.heard_s = now_s
        self._ticked_s = now_s
        silent_s = now_s - max(self.heard_s, connected_s)
        if not self.is_expected or silent_s < ECHO_TIMEOUT_S or now_s - self._forced_s < FORCE_EVERY_S:
            return False
        self._forced_s = now_s
        return True


class KeeperThread:
    """Runs a ``LeaseKeeper`` in a daemon thread with its own connection."""

    def __init__(self, keeper: LeaseKeeper, connect: Callable[[], Awaitable[Bus]]) -> None:
        """Prepare.

        Args:
            keeper: What to run.
            connect: Opens the thread's own connection, inside the thread.
        """
        self._keeper = keeper
        self._connect = connect
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="callboard-keeper", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. A worker whose keeper died must stop: it would lose every lease."""
        return self._thread.is_alive()

    @property
    def error(self) -> BaseException | None:
        """What ended the thread; None while it runs, and after an orderly end."""
        return self._error

    async def start(self) -> None:
        """Start and wait for its connection.

        Raises:
            CallboardError: What connecting raised.
        """
        self._thread.start()
        await asyncio.get_running_loop().run_in_executor(None, self._ready.wait)
        if isinstance(self._error, CallboardError):
            raise self._error
        if self._error is not None:
            message = f"the lease keeper could not start: {self._error}"
            raise CallboardError(message) from self._error

    async def stop(self) -> None:
        """End it; leases it still holds lapse."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 5.0)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the starter re-raises it; a thread has nobody else to tell
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        bus = await self._connect()
        try:
            self._ready.set()
            await self._keeper.serve(bus, stop=self._stopping.is_set)
        finally:
            await bus.close()
