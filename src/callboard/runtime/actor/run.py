"""How an activation runs a mail: attempts in place, restarts, parking and resuming, mail of its own chain."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta

import msgspec
from msgspec import UNSET, Raw

from callboard.runtime import codec, crash, events, logs, subjects
from callboard.runtime.actor import crashes, verdict
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.actor import Actor, turn_scope
from callboard.runtime.actor.execute import (
    STOP_DRAIN,
    STOP_LOST,
    Abandoned,
    Done,
    Ending,
    Raised,
    Stopped,
    Waits,
    execute,
    policy_of,
)
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.mail import KIND_TIMER, KIND_WAIT_TIMEOUT, Mail, mail_of
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import (
    Parked,
    ParkedTurn,
    Reply,
    ReplyError,
    Timer,
    Waited,
    decode_parked,
    encode,
)
from callboard.runtime.actor.turn import Turn, wait_timer_write
from callboard.runtime.blobs import BlobRef
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Write
from callboard.runtime.errors import (
    BusError,
    CallboardError,
    DecodeError,
    MailLoopError,
    PayloadTooLargeError,
    StateTooLargeError,
    TurnCancelledError,
    TurnFencedError,
)
from callboard.runtime.outcome import Retry
from callboard.runtime.record import failure_of

_log = logs.get_logger(__name__)
_RETRY_S = 0.25
_TOMBSTONE_TTL_S = 3600.0
_STOP_CODES = {"timeout": "turn_timeout", "deadline": "deadline"}


class Runner:
    """Runs the turns of one activation, one at a time.

    Attributes:
        nudge: Set when something happened that a waiting turn or loop should look at.
    """

    def __init__(self, activation: Staged) -> None:
        """Begin with no instance; the first turn makes one."""
        self.nudge = asyncio.Event()
        self._activation = activation
        self._actor: Actor | None = None
        self._task: asyncio.Task[Ending] | None = None
        self._inner: set[asyncio.Task[None]] = set()
        self._restarts: deque[float] = deque()
        self._cancel: tuple[str, str] | None = None

    # --- one mail

    async def run(self, mail: Mail) -> None:
        """Handle a mail by its handler and commit what comes of it."""
        activation = self._activation
        try:
            handler, data = activation.kind.select(mail.type, mail.data, mail.content_type)
            argument = activation.kind.decode(handler, mail.type, data, mail.content_type)
        except CallboardError as error:
            await activation.bury_error(mail, error, attempts=0)
            return
        await self._attempts(mail, mail.seq, handler, argument, parked=None, waiting=None)

    async def resume(self, mail: Mail, parked: Parked) -> None:
        """Go on with a parked turn: ``mail`` is what it waited for, or the end of its time."""
        activation = self._activation
        subject = subjects.parked(activation.address.type, activation.address.key, parked.seq)
        stored = await self._read(subject)
        if stored is None or not stored.data:
            remaining = [other for other in activation.known.parked if other.seq != parked.seq]
            failure = failure_of(DecodeError(f"the input of the parked turn {parked.seq} is gone"))
            await activation.bury(mail, failure, attempts=0, changes={"parked": remaining})
            return
        turn = decode_parked(stored.data)
        waited = (
            Waited(timed_out=True)
            if mail.kind == KIND_WAIT_TIMEOUT
            else Waited(data=mail.data, content_type=mail.content_type or "")
        )
        turn = msgspec.structs.replace(turn, waits=[*turn.waits, waited])
        first = self._first_mail(turn)
        try:
            handler, data = activation.kind.select(first.type, first.data, first.content_type)
            argument = activation.kind.decode(handler, first.type, data, first.content_type)
        except CallboardError as error:
            await activation.bury_error(mail, error, attempts=0)
            return
        await self._attempts(first, mail.seq, handler, argument, parked=turn, waiting=parked)

    def _first_mail(self, turn: ParkedTurn) -> Mail:
        address = self._activation.address
        subject = subjects.mailbox(address.type, self._activation.owner.number, address.key)
        return mail_of(
            Stored(subject=subject, data=turn.data, seq=turn.seq, time=turn.time, headers=turn.headers or None)
        )

    async def _attempts(
        self,
        mail: Mail,
        cause_seq: int,
        handler: Handler,
        argument: object,
        *,
        parked: ParkedTurn | None,
        waiting: Parked | None,
    ) -> None:
        activation = self._activation
        # what stopped the turn before is not about this one
        _ = self._take_order()
        if activation.is_gone:
            return
        if activation.owner.suspects_crash(cause_seq):
            poison = await crashes.note(activation, mail, cause_seq)
            if poison is not None:
                await activation.bury_error(mail, poison, attempts=activation.services.rules.crash_limit)
                return
        attempt = 0
        while True:
            attempt += 1
            turn = self._turn(mail, cause_seq, attempt, parked)
            ending = await self._once(turn, handler, argument)
            if isinstance(ending, Abandoned):
                self.forget()
                activation.is_leaving = True
                return
            if not isinstance(ending, Raised):
                try:
                    await self._commit(turn, ending, waiting)
                except (TurnFencedError, asyncio.CancelledError):
                    raise
                except CallboardError as error:
                    ending = Raised(error)
                else:
                    return
            delay_s = await self._after_error(turn, handler, ending.error, waiting)
            if delay_s is None:
                return
            await self._pause(delay_s)
            order = self._take_order()
            if order is not None:
                code, text = order
                if code in (STOP_LOST, STOP_DRAIN):
                    activation.is_leaving = True
                    return
                stopped = Stopped(TurnCancelledError(text))
                await self._commit(self._turn(mail, cause_seq, attempt, parked), stopped, waiting)
                return

    def _take_order(self) -> tuple[str, str] | None:
        """Return the stop that was asked for while no handler ran, once."""
        order, self._cancel = self._cancel, None
        return order

    def _turn(self, mail: Mail, cause_seq: int, attempt: int, parked: ParkedTurn | None) -> Turn:
        activation = self._activation
        services = activation.services
        is_fresh = attempt == 1 and parked is None and not activation.owner.may_have_run(cause_seq)
        steps = {name: bytes(raw) for name, raw in parked.steps.items()} if parked is not None else {}
        journal = self._journal(mail, is_fresh=is_fresh, steps=steps)
        return Turn(
            services,
            address=activation.address,
            mail=mail,
            journal=journal,
            attempt=attempt,
            epoch=activation.owner.epoch,
            cause_seq=cause_seq,
            parked=parked,
        )

    def _journal(self, mail: Mail, *, is_fresh: bool, steps: Mapping[str, bytes] | None = None) -> Journal:
        services = self._activation.services
        return Journal(
            services.bus,
            self._activation.address,
            mail.seq,
            clock=services.clock,
            worker=services.worker,
            blobs=services.blobs,
            store=services.committer.commit,
            is_fresh=is_fresh,
            ttl_s=services.rules.step_ttl_s,
            steps=steps or {},
            claim_check_bytes=services.rules.claim_check_bytes,
        )

    async def _once(self, turn: Turn, handler: Handler, argument: object) -> Ending:
        activation = self._activation
        async with activation.services.slots:
            try:
                actor = await self._ready(turn)
            except Exception as error:  # noqa: BLE001 - the start hook is the user's code
                return Raised(error)
            if crash.point:
                crash.at("before-effect")
            activation.turn = turn
            timer: asyncio.TimerHandle | None = None
            try:
                running = asyncio.ensure_future(execute(turn, handler, actor, argument, part=self._parts(turn)))
                self._task = running
                timer = self._limit(turn, handler)
                if self._cancel is not None:
                    self.stop(*self._cancel)
                ending = await self._outlive(running)
                if self._inner and not isinstance(ending, Abandoned):
                    await asyncio.wait(self._inner)
            finally:
                if timer is not None:
                    timer.cancel()
                self._task = None
                activation.turn = None
                turn.is_over = True
            if crash.point:
                crash.at("after-effect")
            return ending

    async def _outlive(self, running: asyncio.Task[Ending]) -> Ending:
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                running.cancel()
                await asyncio.wait([running])
            raise

    async def _ready(self, turn: Turn) -> Actor:
        activation = self._activation
        actor = self._actor
        if actor is None:
            actor = await activation.new_actor()
            with turn_scope(actor, turn):
                await call_hook(actor.on_start)
            self._actor = actor
        for name, handler in activation.kind.every.items():
            rule = handler.rule or ""
            known = activation.known.timers.get(name)
            if known is None or known.rule != rule:
                timer = Timer(generation=turn.cause_seq, rule=rule)
                turn.set_timer(name, timer, b"null", name, time_zone=handler.time_zone)
        return actor

    def _limit(self, turn: Turn, handler: Handler) -> asyncio.TimerHandle | None:
        limits = [limit for limit in (handler.timeout_s, self._activation.kind.options.turn_timeout_s) if limit]
        code, limit_s = "timeout", min(limits) if limits else None
        if turn.deadline is not None:
            left_s = max(0.0, (turn.deadline - self._activation.services.clock.now()).total_seconds())
            if limit_s is None or left_s < limit_s:
                code, limit_s = "deadline", left_s
        if limit_s is None:
            return None
        text = f"the turn was stopped after {limit_s:g} s: its {code} was reached"
        return asyncio.get_running_loop().call_later(limit_s, self.stop, code, text)

    def _parts(self, turn: Turn) -> Callable[[int, object], None]:
        services = self._activation.services

        def part(number: int, value: object) -> None:
            if turn.mail.reply_to:
                _ = services.spawn(replies.send_part(services, turn.mail.reply_to, number, value), "actor-part")

        return part

    # --- what follows

    async def _commit(self, turn: Turn, ending: Done | Waits | Stopped, waiting: Parked | None) -> None:
        activation = self._activation
        if isinstance(ending, Waits):
            await self._park(turn, waiting)
            return
        applied = [turn.cause_seq, *turn.reentered]
        writes = turn.outgoing
        changes: dict[str, object] = {}
        if waiting is not None:
            changes["parked"] = [other for other in activation.known.parked if other.seq != waiting.seq]
            writes.append(tombstone(activation, waiting.seq))
        if isinstance(ending, Stopped):
            # what it had changed is thrown away, what it did stands in its steps
            self.forget()
            error = ReplyError(code=ending.error.code, message=str(ending.error), type="")
            reply = Reply(id=turn.mail.id, error=error)
            writes = writes[len(turn.outgoing) :]
            _log.info(events.TURN_CANCELLED, actor=str(turn.address), seq=turn.mail.seq, reason=str(ending.error))
        else:
            reply = await self._reply(turn, ending.value)
            changes |= await self._state(turn)
            changes["failures"] = 0
        changes["turns"] = activation.known.turns + 1
        try:
            await activation.commit(applied, to=((turn.mail, reply),), writes=writes, changes=changes)
        except TurnFencedError:
            self.forget()
            raise

    async def _reply(self, turn: Turn, value: object) -> Reply:
        services = self._activation.services
        reply = replies.value_reply(turn.mail.id, value)
        size = len(reply.value) if reply.value is not UNSET else 0
        limit = services.rules.reply_inline_bytes if turn.mail.has_own_id else services.rules.claim_check_bytes
        if size > limit:
            blob = await services.blobs.put(bytes(reply.value))  # type: ignore[arg-type]
            return Reply(id=turn.mail.id, blob=blob)
        return reply

    async def _state(self, turn: Turn) -> dict[str, object]:
        activation = self._activation
        if self._actor is None or not activation.kind.has_state:
            return {"timers": _timers(activation.known.timers, turn)}
        data = activation.kind.dump_state(self._actor.state)
        limit = activation.kind.options.state_limit_bytes
        if len(data) > limit:
            text = f"the state of {turn.address} takes {len(data)} bytes, over its limit of {limit}: keep less in it"
            raise StateTooLargeError(text, size_bytes=len(data), limit_bytes=limit)
        blob: BlobRef | msgspec.UnsetType = UNSET
        raw: Raw | msgspec.UnsetType = Raw(data)
        if len(data) > activation.services.rules.claim_check_bytes:
            blob, raw = await activation.services.blobs.put(data), UNSET
        return {
            "state": raw,
            "blob": blob,
            "schema": activation.kind.version,
            "timers": _timers(activation.known.timers, turn),
        }

    async def _park(self, turn: Turn, waiting: Parked | None) -> None:
        activation = self._activation
        wait = turn.wait
        if wait is None:
            return
        now = activation.services.clock.now()
        number = len(turn.waits)
        parked = Parked(
            seq=turn.mail.seq,
            awaiting=wait.awaiting,
            since=now,
            where=Raw(codec.encode(dict(wait.where))) if wait.where is not None else UNSET,
            until=now + timedelta(seconds=wait.timeout_s) if wait.timeout_s is not None else UNSET,
            hold=wait.hold,
            waits=number,
            id=verdict.digest_of(turn.mail.id) if turn.mail.has_own_id else "",
            askers=waiting.askers if waiting is not None else [],
        )
        steps = {name: Raw(data) for name, data in turn.journal.entries.items()}
        steps |= {name: Raw(b"true") for name in turn.sent}
        kept = ParkedTurn(
            seq=turn.mail.seq,
            id=turn.mail.id,
            data=turn.mail.data,
            headers=dict(turn.mail.headers),
            time=turn.mail.time,
            has_own_id=turn.mail.has_own_id,
            steps=steps,
            waits=turn.waits,
        )
        subject = subjects.parked(activation.address.type, activation.address.key, parked.seq)
        writes = [*turn.outgoing, Write(subject, encode(kept), header.build(rollup=True))]
        if parked.until is not UNSET:
            writes.append(wait_timer_write(activation.address, parked, turn.cause_seq))
        others = [other for other in activation.known.parked if waiting is None or other.seq != waiting.seq]
        applied = [turn.cause_seq, *turn.reentered]
        # what it had changed is thrown away: it runs again from the start, with its journal
        self.forget()
        timers = _timers(activation.known.timers, turn)
        await activation.commit(applied, writes=writes, changes={"parked": [*others, parked], "timers": timers})

    async def _after_error(
        self, turn: Turn, handler: Handler, error: BaseException, waiting: Parked | None
    ) -> float | None:
        """Decide what follows from a failed attempt; return the seconds until the next, None when it was the last."""
        activation = self._activation
        self.forget()
        await self._tell_failure(turn, error)
        policy = policy_of(handler, activation.kind.options.retry)
        terminal = isinstance(error, (PayloadTooLargeError, StateTooLargeError))
        decision = policy.decide(error, policy.attempts if terminal else turn.attempt, trace=_trace(error))
        _log.warning(
            events.TURN_FAILED,
            actor=str(turn.address),
            seq=turn.mail.seq,
            attempt=turn.attempt,
            code=decision.failure.code,
            type=decision.failure.type or "",
        )
        changes: dict[str, object] = {}
        if waiting is not None:
            changes["parked"] = [other for other in activation.known.parked if other.seq != waiting.seq]
        if isinstance(decision, Retry) and not self._is_over_budget():
            return decision.delay_s
        if isinstance(decision, Retry):
            options = activation.kind.options
            reason = (
                f"{options.restart_budget} restarts in {options.restart_window_s:g} s did not help: "
                f"{decision.failure.code}: {decision.failure.message}"
            )
            # the mail stays the next in turn, for when a person restarts the actor
            await activation.commit([], changes={"status": "failed", "reason": reason[:500]})
            _log.error(events.ACTOR_FAILED, actor=str(turn.address), code=decision.failure.code, message=reason[:500])
            return None
        await activation.bury(
            turn.mail, decision.failure, attempts=turn.attempt, cause_seq=turn.cause_seq, changes=changes
        )
        return None

    def _is_over_budget(self) -> bool:
        options = self._activation.kind.options
        now_s = self._activation.services.clock.monotonic()
        self._restarts.append(now_s)
        while self._restarts and now_s - self._restarts[0] > options.restart_window_s:
            self._restarts.popleft()
        return len(self._restarts) > options.restart_budget

    async def _tell_failure(self, turn: Turn, error: BaseException) -> None:
        actor = self._activation.kind.new(turn.address)
        try:
            await call_hook(actor.on_failure, error)
        except Exception as second:  # noqa: BLE001 - the hook is the user's code; the first error is what counts
            _log.warning(events.HOOK_FAILED, actor=str(turn.address), hook="on_failure", type=type(second).__name__)

    # --- from outside

    def stop(self, code: str, text: str) -> None:
        """Stop the turn under way, or the next attempt of it. ``code`` says what follows (see ``execute``)."""
        turn = self._activation.turn
        if turn is not None and self._task is not None and not self._task.done():
            if turn.stop is None:
                turn.stop = (code, text)
                _ = self._task.cancel()
        elif self._activation.is_busy:
            self._cancel = (code, text)
        self.nudge.set()

    def forget(self) -> None:
        """Throw the instance away; the next turn makes a new one from the record."""
        self._actor = None

    def restart(self) -> None:
        """Begin anew: no instance, the whole restart budget; a turn under way is stopped and answered with an error."""
        self.stop("cancel", "the actor was restarted by request")
        self._restarts.clear()
        self.forget()

    async def parked_mail(self, seq: int) -> Mail | None:
        """Return the mail that a parked turn began with."""
        address = self._activation.address
        stored = await self._read(subjects.parked(address.type, address.key, seq))
        return self._first_mail(decode_parked(stored.data)) if stored is not None and stored.data else None

    async def end(self) -> None:
        """Say goodbye to the instance of an actor that is let go."""
        actor, self._actor = self._actor, None
        if actor is not None:
            await self._hook(actor.on_stop, "on_stop")

    async def hook(self, name: str) -> None:
        """Call the pause or resume hook of the instance, if there is one."""
        if self._actor is not None:
            await self._hook(getattr(self._actor, name), name)

    async def _hook(self, function: Callable[[], object], name: str) -> None:
        try:
            await call_hook(function)
        except Exception as error:  # noqa: BLE001 - the hook is the user's code; the actor goes on without it
            _log.warning(events.HOOK_FAILED, actor=str(self._activation.address), hook=name, type=type(error).__name__)

    # --- mail of its own chain

    def is_own_chain(self, mail: Mail) -> bool:
        """Return whether the turn under way waits for what this mail leads to."""
        turn = self._activation.turn
        return turn is not None and any(
            link.address == turn.address and link.seq == turn.mail.seq for link in mail.chain
        )

    def reenter(self, mail: Mail) -> None:
        """Handle a mail of the running turn's own chain inside that turn; it counts as handled with its commit."""
        turn = self._activation.turn
        if turn is None or self._actor is None:
            return
        task = self._activation.services.spawn(self._inside(turn, self._actor, mail), f"actor-{turn.address}-inner")
        if task is not None:
            self._inner.add(task)
            task.add_done_callback(self._inner.discard)

    async def _inside(self, outer: Turn, actor: Actor, mail: Mail) -> None:
        activation = self._activation
        limit = activation.kind.options.max_chain
        try:
            if len(mail.chain) >= limit:
                text = f"the chain of messages has {len(mail.chain)} turns, the limit is {limit}: it was cut here"
                raise MailLoopError(text)
            handler, data = activation.kind.select(mail.type, mail.data, mail.content_type)
            argument = activation.kind.decode(handler, mail.type, data, mail.content_type)
        except CallboardError as error:
            reply = Reply(id=mail.id, error=ReplyError(code=error.code, message=str(error)))
        else:
            journal = self._journal(mail, is_fresh=False)
            inner = Turn(
                activation.services,
                address=outer.address,
                mail=mail,
                journal=journal,
                attempt=outer.attempt,
                epoch=outer.epoch,
                cause_seq=mail.seq,
                parent=outer,
            )
            ending = await execute(inner, handler, actor, argument, part=self._parts(inner))
            inner.is_over = True
            reply = _reply_of(mail, ending)
        outer.reentered.append(mail.seq)
        await activation.answer(mail, reply)

    # --- inside

    async def _read(self, subject: str) -> Stored | None:
        while True:
            try:
                return await self._activation.services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
            except BusError:
                await self._activation.services.clock.sleep(_RETRY_S)

    async def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt; an order from outside ends the wait."""
        clock = self._activation.services.clock
        until_s = clock.monotonic() + delay_s
        while self._cancel is None and clock.monotonic() < until_s:
            self.nudge.clear()
            sleeper = asyncio.ensure_future(clock.sleep(until_s - clock.monotonic()))
            waiter = asyncio.ensure_future(self.nudge.wait())
            try:
                await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waiter.cancel()


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-8))


async def call_hook(function: Callable[..., object], *arguments: object) -> object:
    """Call a function of the user's, synchronous or not."""
    found = function(*arguments)
    return await found if inspect.isawaitable(found) else found


def _reply_of(mail: Mail, ending: Ending) -> Reply:
    match ending:
        case Done(value=value):
            try:
                return replies.value_reply(mail.id, value)
            except CallboardError as error:
                return Reply(id=mail.id, error=ReplyError(code=error.code, message=str(error)))
        case Raised(error=raised):
            failure = failure_of(raised)
            kind = failure.type if isinstance(failure.type, str) else ""
            return Reply(id=mail.id, error=ReplyError(code=failure.code, message=failure.message, type=kind))
        case Stopped(error=stopped):
            return Reply(id=mail.id, error=ReplyError(code=stopped.code, message=str(stopped)))
    return Reply(id=mail.id, error=ReplyError(code="turn_cancelled", message="the turn around it was stopped"))


def _timers(known: dict[str, Timer], turn: Turn) -> dict[str, Timer]:
    """Return the timers that stand after the turn: what it set, less what it took away and what fired."""
    timers = dict(known)
    fired = timers.get(turn.mail.timer) if turn.mail.kind == KIND_TIMER else None
    if fired is not None and fired.due is not UNSET and fired.generation == turn.mail.generation:
        del timers[turn.mail.timer]
    for name, timer in turn.timers.items():
        if timer is None:
            timers.pop(name, None)
        else:
            timers[name] = timer
    return timers


def tombstone(activation: Staged, seq: int) -> Write:
    """Return the write that ends a parked turn's record."""
    subject = subjects.parked(activation.address.type, activation.address.key, seq)
    return Write(subject, b"", header.build(rollup=True, ttl_s=_TOMBSTONE_TTL_S))
