"""What a call may spend: asked of the budgets before it begins, widened while it streams, settled when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import reduce

import msgspec
from msgspec import UNSET

from callboard.agents.errors import BudgetExceededError
from callboard.agents.llm.base import Model, Prompt, Usage
from callboard.agents.llm.price import price_of
from callboard.agents.llm.scope import (
    LONGEST_CALL_S,
    TYPE,
    Amount,
    Grant,
    Limits,
    Reserve,
    SetBudget,
    Settle,
    check_scope,
    possible,
)
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.actor.turn_api import TurnApi

# What an answer is expected to need where nobody says; a longer one asks for more while it comes.
EXPECTED_OUTPUT_TOKENS = 1024
_MARGIN_S = 60.0


async def open_scope(turn: TurnApi, scope: str, limits: Limits | None = None, *, parent: str = "") -> None:
    """Give a scope its limits and its parent, once in this turn. A scope needs this only if it has some of its own.

    Raises:
        InputError: If the scope or its parent cannot be one.
    """
    given = limits or Limits()
    message = SetBudget(
        tokens=UNSET if given.tokens is None else given.tokens,
        usd=UNSET if given.usd is None else given.usd,
        seconds=UNSET if given.seconds is None else given.seconds,
        warn=given.warn,
        critical=given.critical,
        parent=check_scope(parent) if parent else UNSET,
    )
    _ = await turn.ask(f"{TYPE}/{check_scope(scope)}", message)


class Allowance:
    """What the budgets of one attempt at a call let it spend. Without scopes everything is allowed and nothing asked.

    Attributes:
        seconds_left: Wall time that is left, None without a limit.
    """

    def __init__(
        self,
        turn: TurnApi,
        model: Model,
        prompt: Prompt,
        scopes: Sequence[str],
        *,
        step: str,
        nonce: str,
        timeout_s: float | None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            turn: The turn that pays.
            model: Whom it will ask.
            prompt: What.
            scopes: Who pays; each asks its parent.
            step: Id of the call's step.
            nonce: Tells this attempt from all others.
            timeout_s: Longest time of the call.

        Raises:
            InputError: If one of the scopes cannot be one.
        """
        self.seconds_left: float | None = None
        self._turn = turn
        self._model = model
        self._scopes = [check_scope(scope) for scope in scopes]
        self._id = nonce
        self._step = step
        self._input_tokens = model.count_tokens(prompt) if scopes else 0
        self._expected = min(prompt.max_output_tokens or EXPECTED_OUTPUT_TOKENS, model.facts.max_output_tokens)
        self._lasts_s = (timeout_s or LONGEST_CALL_S) + _MARGIN_S
        self._held: list[str] = []
        self._covered = Amount()
        self._rounds = 0

    async def begin(self) -> None:
        """Set aside the prompt and an answer of the expected length; less where that is all there is.

        One question for each scope, one more for each parent.

        Raises:
            BudgetExceededError: If a budget has not even the prompt; the others get back what they gave.
        """
        if not self._scopes:
            return
        try:
            await self._reserve(self._amount(1), self._amount(self._expected))
        except BudgetExceededError:
            await self.settle(Usage(), cost_usd=Decimal(0), seconds=0.0)
            raise

    async def cover(self, output_tokens: int) -> None:
        """See that an answer that has come to so many tokens is paid for; the budgets are asked when it grew too long.

        Raises:
            BudgetExceededError: If they have no more.
        """
        if not self._scopes:
            return
        needed = self._amount(output_tokens)
        if needed.tokens > self._covered.tokens or (needed.usd or 0) > (self._covered.usd or 0):
            await self._reserve(needed, self._amount(2 * output_tokens))

    async def settle(self, usage: Usage, *, cost_usd: Decimal | None, seconds: float) -> None:
        """Say what the call has spent; the second time nothing happens."""
        spent = possible(Amount(tokens=usage.tokens, usd=cost_usd, seconds=seconds))
        message = Settle(id=self._id, spent=spent)
        held, self._held = self._held, []
        # at once and not with the turn's commit, which may be an hour away or never come; repeated it is harmless
        mailed = (ActorRef(self._turn.bus, f"{TYPE}/{scope}", clock=self._turn.clock).tell(message) for scope in held)
        _ = await self._turn.gather(*mailed)

    async def _reserve(self, least: Amount, want: Amount) -> None:
        message = Reserve(id=self._id, step=self._step, least=least, want=want, lasts_s=self._lasts_s)
        key = f"{self._id}/{self._rounds}"
        # the grant is for this attempt alone, and another attempt asks under its own name: nothing to record
        asked = (
            self._turn.ask(f"{TYPE}/{scope}", message, idempotency_key=key, recorded=False) for scope in self._scopes
        )
        grants = [msgspec.convert(answer, Grant) for answer in await self._turn.gather(*asked)]
        self._rounds += 1
        # whoever said yes holds something, also where another said no
        given = [scope for scope, grant in zip(self._scopes, grants, strict=True) if grant.ok]
        self._held = list(dict.fromkeys([*self._held, *given]))
        for grant in grants:
            if not grant.ok:
                raise BudgetExceededError(grant.message, scope=grant.scope, unit=grant.unit)
        self._covered = reduce(smaller, (grant.amount for grant in grants), want)
        if self._rounds == 1:
            self.seconds_left = min((one for grant in grants if (one := grant.seconds_left) is not None), default=None)

    def _amount(self, output_tokens: int) -> Amount:
        usage = Usage(input_tokens=self._input_tokens, output_tokens=output_tokens)
        return possible(Amount(tokens=usage.tokens, usd=price_of(self._model, usage)))


def smaller(one: Amount, other: Amount) -> Amount:
    """Return the lesser of two amounts, each unit by itself."""
    usd = min(one.usd, other.usd) if one.usd is not None and other.usd is not None else None
    return Amount(tokens=min(one.tokens, other.tokens), usd=usd, seconds=min(one.seconds, other.seconds))
