"""The price of a model's tokens, whichever adapter it is."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol, runtime_checkable

from callboard.agents.llm import prices
from callboard.agents.llm.base import Model, Usage


@runtime_checkable
class Priced(Protocol):
    """A model that knows its price before it is asked."""

    def cost(self, usage: Usage) -> Decimal | None:
        """Return the exact price of so many tokens in US dollars; None if it is not known."""
        ...


def price_of(model: Model, usage: Usage) -> Decimal | None:
    """Return what so many tokens cost with a model, by itself or by the built-in table; None if nobody knows."""
    if isinstance(model, Priced):
        return model.cost(usage)
    return prices.cost(usage, model.name, is_local=model.facts.is_local)
