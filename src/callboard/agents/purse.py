"""Who pays for what an agent asks its model: its task, its type's day, and whoever gave it the work."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from callboard.agents.llm.allowance import open_scope
from callboard.agents.llm.scope import TYPE, BudgetView, Limits, ShowBudget, agent_day, check_scope
from callboard.agents.profile import Budget
from callboard.agents.settings import AgentSettings, Allowance
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.mail import KIND_TIMER
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.bus.sealed import SealedBus
from callboard.runtime.errors import InputError

# How long it may take until a budget that a person sets for a type of agent is seen in the middle of its tasks.
LOOK_S = 5.0
# Scopes that a task may name: its runs, one within the other, and a tenant or so.
MAX_GIVEN = 64
_RUN, _FLOW = "run/", "run-"
# Limits in the class statement are kept apart from those that people set: the stricter one holds.
OF_CLASS = "agent-class"
_OWN = frozenset({"agent-day", OF_CLASS})
_looks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[float, bool]]] = WeakKeyDictionary()


class Purse:
    """The scopes that pay for one turn of an agent."""

    def __init__(
        self, turn: TurnApi, own: Budget, given: tuple[str, ...], *, run: str, settings: AgentSettings
    ) -> None:
        """Prepare; ``open`` sets the limits.

        Args:
            turn: The turn.
            own: What the class may spend.
            given: Scopes of whoever gave the work.
            run: Name of the task's own scope, below ``run/``.
            settings: For limits of scopes that were given none.

        Raises:
            InputError: If the caller names scopes that are not for him to charge.
        """
        self._turn = turn
        self._given = _checked(turn, given)
        # whose run pays needs no limits of its own; any other scope that the caller names is charged beside them
        self._is_part = any(scope.startswith(_RUN) for scope in given)
        self._kind = turn.address.type
        self._run = f"run/{run}"
        self._day = agent_day(self._kind, turn.mail.time)
        self._class_day = self._day.replace("agent-day", OF_CLASS, 1)
        defaults = settings.budgets
        self._task_limits = Limits(tokens=own.tokens, usd=own.usd, seconds=own.seconds)
        if self._task_limits == Limits() and not self._is_part:
            self._task_limits = _limits(defaults.run)
        self._class_limits = Limits(tokens=own.tokens_per_day, usd=own.usd_per_day, seconds=own.seconds_per_day)
        self._day_limits = _limits(defaults.agent_day)

    async def open(self) -> None:
        """Give the scopes their limits: one stored question for each that has some, none without."""
        if self._task_limits != Limits():
            await open_scope(self._turn, self._run, self._task_limits)
        if self._class_limits != Limits():
            await open_scope(self._turn, self._class_day, self._class_limits)
        if self._day_limits != Limits() and not await self._is_limited(f"agent-day/{self._kind}"):
            await open_scope(self._turn, f"agent-day/{self._kind}", self._day_limits)
            self._known[f"agent-day/{self._kind}"] = (float("inf"), True)

    async def scopes(self) -> tuple[str, ...]:
        """Return who pays for the next call. A type without a budget is looked up every few seconds, not each time."""
        found = list(self._given)
        if self._task_limits != Limits() or (not self._is_part and await self._is_limited("run")):
            found.insert(0, self._run)
        if self._class_limits != Limits():
            found.append(self._class_day)
        if await self._is_limited(f"agent-day/{self._kind}") or await self._is_limited("agent-day"):
            found.append(self._day)
        return tuple(dict.fromkeys(found))

    async def _is_limited(self, scope: str) -> bool:
        """Return whether somebody has given a kind of scope limits, or a parent that has some."""
        if isinstance(self._turn.bus, SealedBus):
            # a turn that runs again on its records pays nothing and asks nobody
            return False
        now_s = self._turn.clock.monotonic()
        until_s, is_limited = self._known.get(scope, (0.0, False))
        if now_s < until_s:
            return is_limited
        ref = ActorRef(self._turn.bus, Address(TYPE, scope), clock=self._turn.clock)
        # nothing is changed, so nothing is to be found again by a later run: no step
        view = await ref.ask(ShowBudget(), returns=BudgetView)
        is_limited = view.limits != Limits() or bool(view.parent)
        self._known[scope] = (now_s + LOOK_S, is_limited)
        return is_limited

    @property
    def _known(self) -> dict[str, tuple[float, bool]]:
        return _looks.setdefault(asyncio.get_running_loop(), {})


def _checked(turn: TurnApi, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the scopes that a caller names, if he may: none of an agent's own, and of runs those that led here.

    Raises:
        InputError: If he may not.
    """
    if len(given) > MAX_GIVEN:
        text = f"a task names {len(given)} budgets that pay for it: at most {MAX_GIVEN}; give one of them a parent"
        raise InputError(text)
    runs = {_RUN + f"{link.address.type.removeprefix(_FLOW)}/{link.address.key}" for link in turn.mail.chain}
    for scope in given:
        kind = check_scope(scope).partition("/")[0]
        if kind in _OWN:
            text = f"a task cannot be charged to {scope}: a day's budget pays for its own agents, and is not named"
            raise InputError(text)
        # a timer begins a chain of its own
        if (kind == "run" and scope not in runs and turn.mail.kind != KIND_TIMER) or scope == "run":
            text = f"a task cannot be charged to {scope}: it is no part of that run; leave budgets out, or start a run"
            raise InputError(text)
    return given


def _limits(given: Allowance) -> Limits:
    return Limits(tokens=given.tokens, usd=given.usd, seconds=given.seconds)
