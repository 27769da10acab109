"""What a call costs, to the last digit: a table of prices, changes to it, and a sum in exact decimals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from msgspec import Struct

from callboard.agents.llm.base import Usage
from callboard.agents.settings import PriceSettings, PricesSettings

TAKEN_ON: Final = "2026-11-21"
_MILLION: Final = Decimal(1_000_000)
_ZERO: Final = Decimal(0)
_DATE: Final = re.compile(r"-(?:\d{8}|\d{4}-\d{2}-\d{2}|latest)$")


class Price(Struct, frozen=True, kw_only=True):
    """US dollars for a million tokens. ``cached_usd`` None counts cached tokens like any other of the prompt."""

    input_usd: Decimal
    output_usd: Decimal = _ZERO
    cached_usd: Decimal | None = None


Table = Mapping[str, Price]
"""By ``provider/model``; ``provider/*`` stands for the rest of a provider."""


def _price(input_usd: str, output_usd: str = "0", cached_usd: str | None = None) -> Price:
    cached = None if cached_usd is None else Decimal(cached_usd)
    return Price(input_usd=Decimal(input_usd), output_usd=Decimal(output_usd), cached_usd=cached)


# List prices on TAKEN_ON, as the list of litellm 1.106.2 has them. Models whose price depends on the length of
# the prompt have no line, for one price would be wrong. An operator's own stand in agents.prices.
BUILT_IN: Final[Table] = {
    "openai/gpt-5": _price("1.25", "10", "0.125"),
    "openai/gpt-5-mini": _price("0.25", "2", "0.025"),
    "openai/gpt-5-nano": _price("0.05", "0.4", "0.005"),
    "openai/gpt-5.1": _price("1.25", "10", "0.125"),
    "openai/gpt-5.2": _price("1.75", "14", "0.175"),
    "openai/gpt-5.4-mini": _price("0.75", "4.5", "0.075"),
    "openai/gpt-5.4-nano": _price("0.2", "1.25", "0.02"),
    "openai/gpt-4.1": _price("2", "8", "0.5"),
    "openai/gpt-4.1-mini": _price("0.4", "1.6", "0.1"),
    "openai/gpt-4.1-nano": _price("0.1", "0.4", "0.025"),
    "openai/gpt-4o": _price("2.5", "10", "1.25"),
    "openai/gpt-4o-mini": _price("0.15", "0.6", "0.075"),
    "openai/o3": _price("2", "8", "0.5"),
    "openai/o4-mini": _price("1.1", "4.4", "0.275"),
    "openai/text-embedding-3-small": _price("0.02"),
    "openai/text-embedding-3-large": _price("0.13"),
    "anthropic/claude-opus-5-5": _price("4", "20", "0.2"),
    "anthropic/claude-opus-5": _price("5", "25", "0.5"),
    "anthropic/claude-opus-4-8": _price("5", "25", "0.5"),
    "anthropic/claude-opus-4-5": _price("5", "25", "0.5"),
    "anthropic/claude-sonnet-5-5": _price("2", "10", "0.1"),
    "anthropic/claude-sonnet-5": _price("2", "10", "0.2"),
    "anthropic/claude-sonnet-4-6": _price("3", "15", "0.3"),
    "anthropic/claude-sonnet-4-5": _price("3", "15", "0.3"),
    "anthropic/claude-haiku-4-5": _price("1", "5", "0.1"),
    "ollama/*": _price("0"),
}


def table(settings: PricesSettings, *, built_in: Table = BUILT_IN) -> Table:
    """Return the prices that count: those built in, changed as the settings say.

    ``merge`` keeps a model's numbers that the settings leave out, ``override`` does not, ``replace`` drops the whole
    built-in table. A number that is left out and nowhere else known is 0.
    """
    found = {} if settings.mode == "replace" else dict(built_in)
    for line in settings.models:
        found[line.model] = _changed(found.get(line.model) if settings.mode == "merge" else None, line)
    return found


def cost(usage: Usage, model: str | Price | None, *, table: Table = BUILT_IN, is_local: bool = False) -> Decimal | None:
    """Return the exact price of a call in US dollars, or None if the model has no price.

    Args:
        usage: Its tokens.
        model: ``provider/model``, or its price where that was found already.
        table: All prices.
        is_local: Whether a model without a price costs nothing.
    """
    price = find(model, table=table) if isinstance(model, str) else model
    if price is None:
        return _ZERO if is_local else None
    cached_usd = price.input_usd if price.cached_usd is None else price.cached_usd
    cached = min(usage.cached_tokens, usage.input_tokens)
    return (
        (usage.input_tokens - cached) * price.input_usd + cached * cached_usd + usage.output_tokens * price.output_usd
    ) / _MILLION


def find(model: str, *, table: Table = BUILT_IN) -> Price | None:
    """Return the price of ``provider/model``: its own, that of its undated name, its provider's, or None.

    The undated name of ``gpt-4o-2024-08-06`` is ``gpt-4o``.
    """
    provider, _, name = model.partition("/")
    undated = f"{provider}/{_DATE.sub('', name)}"
    return next((table[candidate] for candidate in (model, undated, f"{provider}/*") if candidate in table), None)


def _changed(old: Price | None, line: PriceSettings) -> Price:
    given = line.input_usd, line.output_usd, line.cached_usd
    if old is None:
        return Price(input_usd=given[0] or _ZERO, output_usd=given[1] or _ZERO, cached_usd=given[2])
    return Price(
        input_usd=old.input_usd if given[0] is None else given[0],
        output_usd=old.output_usd if given[1] is None else given[1],
        cached_usd=old.cached_usd if given[2] is None else given[2],
    )
