"""A pick inside a turn: journaled, so that a turn that runs again talks to the agent that it had picked."""

from __future__ import annotations

from typing import Protocol

import msgspec

from callboard.runtime.actor import step
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.services import Services
from callboard.runtime.actor.turn_api import TurnApi, TurnRef
from callboard.runtime.registry.handle import AgentHandle, Picks, PoolHandle
from callboard.runtime.registry.message import Picked, Query


class Picking(TurnApi, Protocol):
    """The turn, as a pick sees it."""

    @property
    def journal(self) -> Journal:
        """Its steps."""
        ...


async def pick(turn: Picking, services: Services, query: Query) -> Picks:
    """Pick once and record whom; return the handle through which the turn asks, journaled as its own asks are.

    Raises:
        NoAgentError: If nobody takes work now; that is not recorded.
        RegistryAwayError: If the registry cannot be asked now and is not known here.
    """
    name = step.short_name(f"~pick {query.capability or query.type}")
    with await turn.journal.begin(name, msgspec.to_builtins(query)) as slot:
        if not slot.is_recorded:
            _ = await slot.record(await services.client.lookups.pick(query))
        picked = msgspec.convert(slot.value, Picked)
    if picked.agent is None:
        return PoolHandle(picked.pool, picked.why, call=turn.call)
    talks = TurnRef(turn, parse(picked.agent.record.address))
    return AgentHandle(
        picked.agent, picked.why, talks=talks, clock=services.clock, served=services.client.lookups.served
    )
