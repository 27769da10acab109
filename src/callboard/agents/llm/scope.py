"""Budgets in words: limits, amounts, and what callers and the ``budget`` actors say to each other."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from callboard.runtime.errors import InputError

TYPE = "budget"
Unit = Literal["tokens", "usd", "seconds"]
Level = Literal["ok", "warn", "critical", "spent"]
# A call that says no limit of time is given up by its budgets after this.
LONGEST_CALL_S = 900.0
# Nothing that is asked for or spent is more; sums of them stay exact and have a form in JSON.
MOST_TOKENS, MOST_USD, MOST_SECONDS = 10**12, Decimal(10**12), 1e10
MAX_LASTS_S = 30 * 86_400.0
_DAYS = "agent-day"
_EVERY_DAY_PARTS = 2


class Limits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a scope may spend in all. None is no limit, 0 nothing at all.

    Attributes:
        tokens: Of the prompt and of the answer together.
        usd: US dollars, exact.
        seconds: Wall time of calls, added up; waiting for people counts nothing.
        warn: Share of a limit at which a warning is given.
        critical: Share at which a person should look.
    """

    tokens: int | None = None
    usd: Decimal | None = None
    seconds: float | None = None
    warn: float = 0.8
    critical: float = 0.95


class Amount(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something spent, or set aside. ``usd`` None is a price that nobody knows."""

    tokens: int = 0
    usd: Decimal | None = Decimal(0)
    seconds: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        """Return both together; an unknown price counts nothing."""
        return Amount(
            tokens=self.tokens + other.tokens,
            usd=(self.usd or Decimal(0)) + (other.usd or Decimal(0)),
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, other: Amount) -> Amount:
        """Return what is left of one without the other."""
        return Amount(
            tokens=self.tokens - other.tokens,
            usd=(self.usd or Decimal(0)) - (other.usd or Decimal(0)),
            seconds=self.seconds - other.seconds,
        )


class Reserve(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Set something aside for a call, or change what was set aside under the same ``id``.

    Attributes:
        id: Of this attempt at the call.
        step: Of the call. What another attempt at it had set aside and never settled is charged with its ``least``.
        least: What it needs to begin; with less the answer is no.
        want: What it is expected to need; less is given where that is all there is.
        lasts_s: After so many seconds without an end it counts as interrupted.
        via: Scopes below that ask through this one.
    """

    id: str
    step: str
    least: Amount
    want: Amount
    lasts_s: float = LONGEST_CALL_S
    via: tuple[str, ...] = ()


class Settle(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say what a call has spent; what was set aside beyond it is free again. Harmless when repeated."""

    id: str
    spent: Amount


class Grant(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a budget answers to ``Reserve``.

    Attributes:
        ok: Whether the call may begin, or go on.
        amount: What is set aside for it.
        seconds_left: Wall time that is left, None without a limit.
        scope: Who said no.
        unit: What is used up; "" if it is something else.
        message: Why not, and what to do.
    """

    ok: bool
    amount: Amount = Amount()
    seconds_left: float | None = None
    scope: str = ""
    unit: Unit | Literal[""] = ""
    message: str = ""


class SetBudget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Change limits and parent of a scope; what is left out stays, None takes a limit away, "" the parent.

    Attributes:
        is_of_kind: Whether these are the limits of the scope's kind: limits that it was given itself stay.
    """

    tokens: int | UnsetType | None = UNSET
    usd: Decimal | UnsetType | None = UNSET
    seconds: float | UnsetType | None = UNSET
    warn: float | UnsetType = UNSET
    critical: float | UnsetType = UNSET
    parent: str | UnsetType = UNSET
    is_of_kind: bool = False


class ShowBudget(Struct, frozen=True):
    """Ask a budget how it stands."""


class BudgetView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a scope stands.

    Attributes:
        scope: Which.
        limits: What it may spend.
        parent: Scope that pays as well, "" for none.
        spent: What its calls have spent.
        reserved: What is set aside for calls that run.
        calls: Calls settled, interrupted ones included.
        interrupted: Calls that never said what they spent; each is charged with its prompt.
        refused: Calls that were refused.
        running: Calls that run.
        level: The worst of its units.
        since: When its first call came.
        is_set: Whether it was given limits or a parent of its own.
        today: Of ``agent-day/<type>``, where it is shown: the scope of the present day, which is what calls are
            charged to; None where nobody set or used it.
    """

    scope: str
    limits: Limits
    spent: Amount
    reserved: Amount
    parent: str = ""
    calls: int = 0
    interrupted: int = 0
    refused: int = 0
    running: int = 0
    level: Level = "ok"
    since: datetime | None = None
    is_set: bool = False
    today: BudgetView | None = None


def check_amount(amount: Amount) -> Amount:
    """Return an amount that can be spent. One below nothing would give a budget back what others have spent.

    Raises:
        InputError: If it cannot.
    """
    usd = amount.usd if amount.usd is not None else Decimal(0)
    is_fine = (
        0 <= amount.tokens <= MOST_TOKENS
        and usd.is_finite()
        and 0 <= usd <= MOST_USD
        and 0 <= amount.seconds <= MOST_SECONDS
    )
    if not is_fine:
        text = (
            f"{amount.tokens:.4g} tokens, {usd:.4g} US dollars, {amount.seconds:.4g} s are nothing that a call can "
            "spend: say amounts from 0 on"
        )
        raise InputError(text)
    return amount


def possible(amount: Amount) -> Amount:
    """Return an amount that can be spent and is nearest to one that a model, or its provider, has told."""
    usd = amount.usd
    if usd is not None:
        usd = min(max(usd, Decimal(0)), MOST_USD) if not usd.is_nan() else None
    tokens = min(max(amount.tokens, 0), MOST_TOKENS)
    return Amount(tokens=tokens, usd=usd, seconds=min(max(amount.seconds, 0.0), MOST_SECONDS))


def agent_day(kind: str, now: datetime) -> str:
    """Return the scope of one type of agent on one day (UTC)."""
    return f"{_DAYS}/{kind}/{now:%Y-%m-%d}"


def agent_of(scope: str) -> str:
    """Return the type of agent whose days, or one of whose days, a scope is; "" for other scopes."""
    parts = scope.split("/")
    return parts[1] if parts[0] == _DAYS and len(parts) in (_EVERY_DAY_PARTS, _EVERY_DAY_PARTS + 1) else ""


def every_day(scope: str) -> str:
    """Return the scope that limits each day of a type of agent, for itself and for one of the days; "" for others."""
    kind = agent_of(scope)
    return f"{_DAYS}/{kind}" if kind else ""


def check_scope(scope: str) -> str:
    """Return a scope that can be one.

    Raises:
        InputError: If it cannot.
    """
    parts = scope.split("/")
    if not all(parts) or any(part != part.strip() or not part.isprintable() for part in parts):
        text = (
            f"{scope[:80]!r} is no scope of a budget: write run/<id>, agent-day/<type>/<date>, tenant/<name>, or words "
            "of your own with slashes between"
        )
        raise InputError(text)
    return scope
