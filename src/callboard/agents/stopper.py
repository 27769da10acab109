"""The system actor that ends a run and everything that works for it, through whatever dies meanwhile."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from callboard.agents import run_log
from callboard.agents.run_record import again, run_address
from callboard.runtime import codec, subjects
from callboard.runtime.actor import address as addresses
from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.bus.base import Bus
from callboard.runtime.client import Client
from callboard.runtime.errors import BusTimeoutError, InputError, NoRespondersError, PermissionDeniedError

STOPPER = "flow-stop"
# Nothing was open in so many looks, a second apart: what was on its way has come by then.
QUIET_LOOKS = 2
LOOK_S = 1.0
# After so many looks they become rarer: whoever would have to stop is not there.
QUICK_TRIES = 30
SLOW_LOOK_S = 15.0
# Without a host its mail waits; it is tried again for so long.
TRY_S = 86_400.0
_ORDER_TIMEOUT_S = 2.0


class StopRun(Struct, frozen=True, omit_defaults=True):
    """End a run; or only what still works for one that has ended by itself.

    Attributes:
        run: Its name, ``<flow>/<id>``.
        reason: For people; whoever waits for one of them is told.
        seq: Mail of the attempt whose agents are meant; 0 for the latest, and the run itself is ended as well.
        looks: How many looks in a row have found nothing open.
        tries: Looks so far.
        until: When to give up; set by the first look.
    """

    run: str
    reason: str = "cancelled by request"
    seq: int = 0
    looks: int = 0
    tries: int = 0
    until: datetime | None = None


class Stopper(Actor, name=STOPPER):
    """Cancels a run's turn, its agents' turns and its tasks, and looks again until nothing of it is left.

    Its key is the run's name. One look is one turn; the next one is a timer, so that it goes on wherever hosts are.
    A second run of a look is harmless: what is cancelled already has nothing left to cancel.
    """

    @on
    async def stop(self, m: StopRun) -> bool:
        """Look once. Returns whether nothing was open."""
        turn = current_turn()
        bus, now = turn.bus, turn.clock.now()
        actor = run_address(m.run)
        is_open = m.seq == 0 and await end_actor(bus, actor, m.reason)
        found = await run_log.read(bus, actor, m.seq)
        for part in found.open_agents:
            if part.until is not None and part.until <= now:
                # its deadline ends it
                continue
            for ask in (part.ask, again(part.ask)):
                is_open |= await cancel(bus, addresses.parse(part.agent), m.reason, id=ask)
        client = Client(bus, clock=turn.clock)
        for task in found.tasks:
            # where the server does not let hosts give orders, what goes on is ended by its deadline
            with contextlib.suppress(PermissionDeniedError):
                _ = await client.cancel(task.capability, task.id, reason=m.reason)
        looks = 0 if is_open else m.looks + 1
        until = m.until or now + timedelta(seconds=TRY_S)
        if looks < QUIET_LOOKS and now < until:
            following = StopRun(m.run, m.reason, seq=m.seq, looks=looks, tries=m.tries + 1, until=until)
            self.remind("look", following, delay_s=LOOK_S if m.tries < QUICK_TRIES else SLOW_LOOK_S)
        return not is_open


async def end_actor(bus: Bus, actor: Address, reason: str) -> bool:
    """Cancel whatever runs, is parked or waits at an actor; return whether there was anything, or nobody to ask."""
    was_there = await cancel(bus, actor, reason)
    for mail in await inspection.mailbox(bus, actor):
        if mail.kind is None:
            was_there |= await cancel(bus, actor, reason, id=mail.id)
    return was_there


async def cancel(bus: Bus, actor: Address, reason: str, *, id: str = "") -> bool:  # noqa: A002 - the word of the order
    """Order the owner of an actor to cancel a mail; return False only when it says that nothing of it is left.

    Args:
        bus: Where.
        actor: Whose.
        reason: For people.
        id: The mail's id; "" for what runs or is parked.
    """
    order = codec.encode({"op": "cancel", "reason": reason, "id": id})
    try:
        answer = await bus.request(subjects.ctl_actor(actor.type, actor.key), order, timeout_s=_ORDER_TIMEOUT_S)
    except (NoRespondersError, BusTimeoutError):
        # nobody hosts or owns it at this moment; its mail waits
        return True
    except PermissionDeniedError:
        # the server does not let hosts give orders: its deadline ends it
        return False
    said: Any = msgspec.json.decode(answer.data)
    return not (isinstance(said, dict) and (said.get("error") or {}).get("code") == InputError.code)
