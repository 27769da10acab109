"""Prices: exact to the last digit, and changed as the settings say."""

from __future__ import annotations

from decimal import Decimal

import pytest

from callboard.agents.llm import prices
from callboard.agents.llm.base import Usage
from callboard.agents.llm.prices import Price
from callboard.agents.settings import PricesSettings

BUILT_IN = {
    "a/one": Price(input_usd=Decimal(2), output_usd=Decimal(8), cached_usd=Decimal("0.5")),
    "a/two": Price(input_usd=Decimal(1)),
    "b/*": Price(input_usd=Decimal(3), output_usd=Decimal(4)),
}


def changed(mode: str, **line: object) -> prices.Table:
    settings = PricesSettings.model_validate({"mode": mode, "models": [{"model": "a/one"} | line]})
    return prices.table(settings, built_in=BUILT_IN)


def test_a_call_costs_its_tokens() -> None:
    usage = Usage(input_tokens=1_000_003, output_tokens=7, cached_tokens=3)
    assert prices.cost(usage, "a/one", table=BUILT_IN) == Decimal("2.0000575")
    # without a price of their own, cached tokens cost what others do
    assert prices.cost(usage, "a/two", table=BUILT_IN) == Decimal("1.000003")


def test_many_small_calls_sum_to_the_cent() -> None:
    one = prices.cost(Usage(input_tokens=1, output_tokens=1), "openai/gpt-5-nano")
    assert one == Decimal("0.00000045")
    assert sum([one] * 1_000_000, Decimal(0)) == Decimal("0.45")


def test_more_cached_tokens_than_tokens_cost_no_less_than_nothing() -> None:
    assert prices.cost(Usage(input_tokens=2, cached_tokens=9), "a/one", table=BUILT_IN) == Decimal("0.000001")


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("a/one", "a/one"),
        ("a/one-2024-08-06", "a/one"),
        ("a/one-20240806", "a/one"),
        ("a/one-latest", "a/one"),
        ("a/one-mini", None),
        ("a/one-2", None),
        ("b/anything", "b/*"),
        ("c/one", None),
        ("one", None),
    ],
)
def test_a_model_has_the_price_of_its_name(model: str, found: str | None) -> None:
    assert prices.find(model, table=BUILT_IN) == (BUILT_IN[found] if found else None)


def test_what_has_no_price_costs_nobody_knows_what() -> None:
    assert prices.cost(Usage(input_tokens=5), "c/one", table=BUILT_IN) is None
    assert prices.cost(Usage(input_tokens=5), "c/one", table=BUILT_IN, is_local=True) == 0


def test_merge_keeps_what_is_not_named() -> None:
    table = changed("merge", output_usd="9")
    assert table["a/one"] == Price(input_usd=Decimal(2), output_usd=Decimal(9), cached_usd=Decimal("0.5"))
    assert table["a/two"] == BUILT_IN["a/two"]


def test_override_keeps_nothing_of_the_line() -> None:
    table = changed("override", output_usd="9")
    assert table["a/one"] == Price(input_usd=Decimal(0), output_usd=Decimal(9))
    assert table["a/two"] == BUILT_IN["a/two"]


def test_replace_keeps_nothing_at_all() -> None:
    assert list(changed("replace", input_usd="9")) == ["a/one"]


def test_a_float_in_a_file_is_the_number_that_was_written() -> None:
    assert changed("merge", input_usd=0.1)["a/one"].input_usd == Decimal("0.1")
