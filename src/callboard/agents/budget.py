"""Budgets: an actor for each scope that pays, such as a run, an agent's day or a tenant.

A call sets aside what it needs, spends, and settles. The key of the actor is the scope; its mails come one at a time,
so calls of many hosts share a limit without a lock. A scope pays into its parent as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import ClassVar

import msgspec
from msgspec import UNSET, Struct, field

from callboard.agents.llm.allowance import smaller
from callboard.agents.llm.scope import (
    MAX_LASTS_S,
    TYPE,
    Amount,
    BudgetView,
    Grant,
    Level,
    Limits,
    Reserve,
    SetBudget,
    Settle,
    ShowBudget,
    Unit,
    agent_day,
    agent_of,
    check_amount,
    check_scope,
    every_day,
)
from callboard.agents.settings import AgentSettings
from callboard.runtime import subjects
from callboard.runtime.actor import record
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import InputError

# Calls whose end is remembered, so that a repeated settlement counts once. Each write of the scope holds them all.
CLOSED_KEPT = 64
LOST_KEPT = 512
"""Calls taken for interrupted: rarer, and what their hosts say of them comes late."""

MAX_ABOVE = 16
"""Scopes above one another."""

_LEVELS: tuple[Level, ...] = ("ok", "warn", "critical", "spent")


class Open(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is set aside for a call that runs: ``least`` is charged if it never says what it spent."""

    step: str
    amount: Amount
    least: Amount
    until: datetime


class Ledger(Struct, kw_only=True, omit_defaults=True):
    """What a scope keeps.

    Attributes:
        limits: What it may spend.
        own: Names of the limits that it was given itself; the others are those of its kind.
        parent: Scope that pays as well.
        spent: What settled and interrupted calls have spent.
        open: Calls that run, by id.
        closed: The last calls that ended, with what they were charged.
        lost: The last ones taken for interrupted, likewise.
        calls, interrupted, refused: Counts.
        since: When its first call came.
        told: The worst level that was told.
        is_known: Whether it has looked for the limits of its kind.
        is_set: Whether somebody gave it limits or a parent of its own.
    """

    limits: Limits = Limits()
    own: tuple[str, ...] = ()
    parent: str = ""
    spent: Amount = Amount()
    open: dict[str, Open] = field(default_factory=dict)
    closed: dict[str, Amount] = field(default_factory=dict)
    lost: dict[str, Amount] = field(default_factory=dict)
    calls: int = 0
    interrupted: int = 0
    refused: int = 0
    since: datetime | None = None
    told: Level = "ok"
    is_known: bool = False
    is_set: bool = False


class Budget(Actor, name=TYPE, restart_budget=1000, poison_limit=100):
    """The budget of one scope, ``budget/<scope>``. Host it wherever agents and flows are hosted.

    A scope looks once, when it is first used, at those of its kind, its own name without the last parts: ``run`` holds
    the limits of each ``run/<id>`` that was given none, ``agent-day/planner`` those of each of the planner's days.
    Where nobody set these, the settings' ``agents.budgets`` count.
    """

    State: ClassVar[type[Ledger]] = Ledger
    state: Ledger

    @on
    async def reserve(self, m: Reserve) -> Grant:
        """Set something aside, here and in every scope above, or say why not."""
        now = current_turn().clock.now()
        _check(m)
        await self._know()
        self._interrupt([id_ for id_, one in self.state.open.items() if is_over(one, id_, m, now=now)])
        if m.id in self.state.closed or m.id in self.state.lost:
            # a repeated question of a call that has ended
            return Grant(ok=True, seconds_left=0.0)
        granted = grant(self.state, m, scope=self.key)
        if granted.ok and self.state.parent:
            granted = self._joined(granted, await self._ask_parent(m, granted.amount))
        if not granted.ok:
            self.state.refused += 1
            self.emit("budget.refused", {"scope": granted.scope, "unit": granted.unit, "step": m.step})
            return granted
        until = now + timedelta(seconds=m.lasts_s)
        first = self.state.open.get(m.id)
        least = m.least if first is None else first.least
        self.state.open[m.id] = Open(step=m.step, amount=granted.amount, least=least, until=until)
        self.state.since = self.state.since or now
        return granted

    @on
    def settle(self, m: Settle) -> None:
        """Charge what a call has spent, once, here and in every scope above."""
        _ = check_amount(m.spent)
        settle(self.state, m)
        self._tell_level()
        if self.state.parent:
            self.tell(f"{TYPE}/{self.state.parent}", m)

    @on
    async def change(self, m: SetBudget) -> BudgetView:
        """Change limits and parent; what was spent stays."""
        await self._know()
        if m.is_of_kind:
            m = msgspec.structs.replace(m, **dict.fromkeys(self.state.own, UNSET))
        self.state.limits = changed(self.state.limits, m)
        if not m.is_of_kind:
            self.state.own = owned(self.state.own, m)
            self.state.is_set = True
        if m.parent is not UNSET:
            self.state.parent = await self._found_parent(m.parent)
        if self.key == every_day(self.key):
            # today's scope took over the limits when its first call came
            today = agent_day(agent_of(self.key), current_turn().clock.now())
            self.tell(f"{TYPE}/{today}", msgspec.structs.replace(m, parent=UNSET, is_of_kind=True))
        self.state.told = "ok"
        self._tell_level()
        return view(self.state, self.key)

    @on(read_only=True)
    def show(self, _m: ShowBudget) -> BudgetView:
        """Say how it stands."""
        return view(self.state, self.key)

    async def _know(self) -> None:
        """Take over the limits of its kind, before the first call."""
        if self.state.is_known:
            return
        kind = self.key.rpartition("/")[0]
        while kind:
            found = msgspec.convert(await self.ask(f"{TYPE}/{kind}", ShowBudget()), BudgetView)
            if found.is_set:
                self.state.limits, self.state.parent = found.limits, found.parent
                break
            kind = kind.rpartition("/")[0]
        else:
            self.state.limits = await asyncio.to_thread(_defaults, self.key)
        self.state.is_known = True

    async def _found_parent(self, parent: str) -> str:
        """Return a parent that can be one.

        Raises:
            InputError: If it cannot: two calls that came from both sides of a circle would wait for each other.
        """
        above, via = _parent(parent, self.key), [self.key]
        while above and len(via) < MAX_ABOVE:
            via.append(above)
            if above == self.key:
                text = f"{parent} cannot be the parent of {self.key}, which pays for it: {' -> '.join(via)}"
                raise InputError(text)
            above = msgspec.convert(await self.ask(f"{TYPE}/{above}", ShowBudget()), BudgetView).parent
        if above:
            text = f"{self.key} would have more than {MAX_ABOVE} scopes above it: take a parent nearer to the top"
            raise InputError(text)
        return parent

    async def _ask_parent(self, m: Reserve, amount: Amount) -> Grant:
        parent = self.state.parent
        via = (*m.via, self.key)
        if parent in via:
            text = (
                f"the budgets {' -> '.join((*via, parent))} are each other's parents: end it with "
                f"`callboard budget set {parent} --parent none`"
            )
            return Grant(ok=False, scope=self.key, message=text)
        message = msgspec.structs.replace(m, want=amount, via=via)
        return msgspec.convert(await self.ask(f"{TYPE}/{parent}", message), Grant)

    def _joined(self, own: Grant, above: Grant) -> Grant:
        if not above.ok:
            return above
        left = [grant.seconds_left for grant in (own, above) if grant.seconds_left is not None]
        return Grant(ok=True, amount=smaller(own.amount, above.amount), seconds_left=min(left, default=None))

    def _interrupt(self, ids: list[str]) -> None:
        for id_ in ids:
            one = self.state.open[id_]
            settle(self.state, Settle(id=id_, spent=one.least), is_lost=True)
            self.state.interrupted += 1
            self.emit("budget.interrupted", {"scope": self.key, "step": one.step, "charged": one.least})
        if ids:
            self._tell_level()

    def _tell_level(self) -> None:
        level, unit = level_of(self.state.limits, self.state.spent)
        if _LEVELS.index(level) > _LEVELS.index(self.state.told):
            self.emit(f"budget.{level}", {"scope": self.key, "unit": unit, "spent": self.state.spent})
            self.state.told = level


# --- looking from outside


async def find_budgets(bus: Bus, scope: str | None = None) -> list[BudgetView]:
    """Return how scopes stand, by name; one, or all that were ever used. Reads records; nobody needs to host them.

    Raises:
        InputError: If the scope cannot be one.
    """
    wildcard = f"cb.state.{TYPE}.*" if scope is None else subjects.state(TYPE, check_scope(scope))
    found = []
    for stored in await bus.get_many(subjects.ACTORS, [wildcard], from_leader=True):
        state = record.decode(stored.data).state
        if isinstance(state, msgspec.Raw):
            ledger = msgspec.json.decode(state, type=Ledger)
            found.append(view(ledger, subjects.unescape(stored.subject.rpartition(".")[2])))
    return sorted(found, key=lambda each: each.scope)


# --- decisions: plain functions of what a scope keeps


def is_over(one: Open, id_: str, m: Reserve, *, now: datetime) -> bool:
    """Return whether a call that runs has lost its host: its time is over, or another attempt at it begins."""
    return id_ != m.id and (one.until <= now or one.step == m.step)


def grant(ledger: Ledger, m: Reserve, *, scope: str) -> Grant:
    """Decide what a scope by itself gives to a call."""
    others = [one.amount for id_, one in ledger.open.items() if id_ != m.id]
    used = sum(others, ledger.spent)
    limits = ledger.limits
    if limits.usd is not None and m.want.usd is None:
        text = (
            f"budget {scope} is in US dollars and the model's price is not known: add one under agents.prices, or "
            "limit tokens in place of dollars"
        )
        return Grant(ok=False, scope=scope, unit="usd", message=text)
    amount = m.want
    for unit, limit, taken, least, want in _units(limits, used, m):
        left = limit - taken
        # what costs nothing is free also where nothing is left, but not where nothing was ever given
        if not limit or left < least or (unit == "seconds" and left <= 0):
            advice = f"raise it with `callboard budget set {_setter(ledger, scope, unit)} --{unit} N`"
            message = f"{_used_up(scope, unit, limit, taken, least)}: {advice}{', or stop here' if limit else ''}"
            return Grant(ok=False, scope=scope, unit=unit, message=message)
        if unit == "tokens":
            amount = msgspec.structs.replace(amount, tokens=int(min(left, want)))
        elif unit == "usd":
            amount = msgspec.structs.replace(amount, usd=min(left, want))
    seconds_left = None if limits.seconds is None else limits.seconds - used.seconds
    return Grant(ok=True, amount=amount, seconds_left=seconds_left)


def settle(ledger: Ledger, m: Settle, *, is_lost: bool = False) -> None:
    """Charge a call; one that was charged before is only put right. ``is_lost``: nobody said that it ended."""
    opened = ledger.open.pop(m.id, None)
    before = ledger.closed.pop(m.id, None) or ledger.lost.pop(m.id, None)
    if before is None:
        if m.spent == Amount():
            # it never began
            return
        ledger.calls += 1
    elif opened is None and m.spent == before:
        ledger.closed[m.id] = before
        return
    ledger.spent = ledger.spent + m.spent - (before or Amount())
    kept, most = (ledger.lost, LOST_KEPT) if is_lost else (ledger.closed, CLOSED_KEPT)
    kept[m.id] = m.spent
    while len(kept) > most:
        del kept[next(iter(kept))]


def changed(limits: Limits, m: SetBudget) -> Limits:
    """Return limits as a person wants them.

    Raises:
        InputError: If a limit is negative, or the shares do not stand in their order.
    """
    given = {name: value for name in Limits.__struct_fields__ if (value := getattr(m, name)) is not UNSET}
    made = msgspec.structs.replace(limits, **given)
    for name in ("tokens", "usd", "seconds"):
        value = getattr(made, name)
        is_number = not isinstance(value, Decimal) or value.is_finite()
        if value is not None and not (is_number and value >= 0):
            text = f"a limit of {value} {name} is below nothing: give 0 or more, or none for no limit"
            raise InputError(text)
    if not 0 < made.warn <= made.critical <= 1:
        text = f"warn {made.warn:g} and critical {made.critical:g} are shares of a limit: 0 < warn <= critical <= 1"
        raise InputError(text)
    return made


def owned(own: tuple[str, ...], m: SetBudget) -> tuple[str, ...]:
    """Return the names of the limits that a scope has itself; one that was taken away is its kind's to give again."""
    kept = dict.fromkeys(own)
    for name in Limits.__struct_fields__:
        value = getattr(m, name)
        if value is None:
            kept.pop(name, None)
        elif value is not UNSET:
            # the shares stand in an order, which those of two scopes together may not
            kept |= dict.fromkeys(("warn", "critical") if name in ("warn", "critical") else (name,))
    return tuple(kept)


def level_of(limits: Limits, spent: Amount) -> tuple[Level, Unit | None]:
    """Return how near a scope is to its limits, and the unit that is nearest."""
    worst: tuple[float, Unit | None] = (0.0, None)
    for unit, limit, used in _limited(limits, spent):
        share = float(used / limit) if limit else 1.0
        if share > worst[0]:
            worst = (share, unit)
    share, nearest = worst
    level: Level = "ok"
    if share >= 1:
        level = "spent"
    elif share >= limits.critical:
        level = "critical"
    elif share >= limits.warn:
        level = "warn"
    return level, nearest


def view(ledger: Ledger, scope: str) -> BudgetView:
    """Return how a scope stands."""
    return BudgetView(
        scope=scope,
        limits=ledger.limits,
        parent=ledger.parent,
        spent=ledger.spent,
        reserved=sum((one.amount for one in ledger.open.values()), Amount()),
        calls=ledger.calls,
        interrupted=ledger.interrupted,
        refused=ledger.refused,
        running=len(ledger.open),
        level=level_of(ledger.limits, ledger.spent)[0],
        since=ledger.since,
        is_set=ledger.is_set,
    )


def _limited(limits: Limits, spent: Amount) -> Iterator[tuple[Unit, Decimal, Decimal]]:
    pairs: tuple[tuple[Unit, int | float | Decimal | None, int | float | Decimal | None], ...] = (
        ("tokens", limits.tokens, spent.tokens),
        ("usd", limits.usd, spent.usd),
        ("seconds", limits.seconds, spent.seconds),
    )
    for unit, limit, used in pairs:
        if limit is not None:
            yield unit, Decimal(limit), Decimal(used or 0)


def _units(limits: Limits, used: Amount, m: Reserve) -> Iterator[tuple[Unit, Decimal, Decimal, Decimal, Decimal]]:
    for unit, limit, taken in _limited(limits, used):
        least, want = getattr(m.least, unit) or 0, getattr(m.want, unit) or 0
        yield unit, limit, taken, Decimal(least), Decimal(want)


def _used_up(scope: str, unit: Unit, limit: Decimal, taken: Decimal, least: Decimal) -> str:
    shown = "$" if unit == "usd" else ""
    word = "" if unit == "usd" else f" {unit}"
    if not limit:
        return f"budget {scope} is {shown}0{word}, which lets no call begin"
    return (
        f"budget {scope} has {shown}{max(limit - taken, Decimal(0)):.6g} of {shown}{limit:.6g}{word} left, the call "
        f"needs {shown}{least:.6g} at least"
    )


def _setter(ledger: Ledger, scope: str, unit: Unit) -> str:
    """Return the scope to set for another limit: the one of all days, for a day that was given none of its own."""
    return scope if unit in ledger.own else every_day(scope) or scope


def _check(m: Reserve) -> None:
    for amount in (m.least, m.want):
        _ = check_amount(amount)
    if not 0 <= m.lasts_s <= MAX_LASTS_S:
        text = f"a call that lasts {m.lasts_s:g} s cannot be: say 0 to {MAX_LASTS_S:g}"
        raise InputError(text)


def _defaults(scope: str) -> Limits:
    """Return the limits of the settings, for runs and days of agents; others have none."""
    settings = AgentSettings.load().budgets
    given = {"run": settings.run, "agent-day": settings.agent_day}.get(scope.partition("/")[0])
    found = Limits(warn=settings.warn_share, critical=settings.critical_share)
    if given is None or "/" not in scope:
        return found
    return msgspec.structs.replace(found, tokens=given.tokens, usd=given.usd, seconds=given.seconds)


def _parent(parent: str, scope: str) -> str:
    if parent == scope:
        text = f"budget {scope} cannot be its own parent"
        raise InputError(text)
    return check_scope(parent) if parent else ""
