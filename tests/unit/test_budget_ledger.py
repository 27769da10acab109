"""What a budget keeps: nothing is charged twice, nothing is set aside for ever, whatever comes in whatever order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.agents import budget
from callboard.agents.budget import Ledger, Open
from callboard.agents.llm.scope import Amount, Limits, Reserve, SetBudget, Settle, agent_day, check_scope
from callboard.runtime.errors import InputError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def amount(tokens: int, usd: str = "0") -> Amount:
    return Amount(tokens=tokens, usd=Decimal(usd))


def reserve(id_: str = "a", *, step: str = "s", least: int = 10, want: int = 100) -> Reserve:
    return Reserve(id=id_, step=step, least=amount(least), want=amount(want))


def opened(ledger: Ledger, m: Reserve) -> None:
    ledger.open[m.id] = Open(step=m.step, amount=m.want, least=m.least, until=NOW + timedelta(seconds=m.lasts_s))


def test_less_is_given_where_less_is_left_and_nothing_below_the_least() -> None:
    ledger = Ledger(limits=Limits(tokens=150), spent=amount(100))
    found = budget.grant(ledger, reserve(), scope="run/1")
    assert (found.ok, found.amount.tokens) == (True, 50)
    refused = budget.grant(ledger, reserve(least=51), scope="run/1")
    assert (refused.ok, refused.unit, refused.scope) == (False, "tokens", "run/1")
    assert "has 50 of 150 tokens left, the call needs 51 at least" in refused.message


@pytest.mark.parametrize("limits", [Limits(tokens=0), Limits(usd=Decimal(0)), Limits(seconds=0.0)])
def test_a_limit_of_zero_refuses_what_is_free_as_well_and_is_spent_from_the_start(limits: Limits) -> None:
    ledger = Ledger(limits=limits)
    free = Reserve(id="a", step="s", least=Amount(), want=Amount())
    refused = budget.grant(ledger, free, scope="run/1")
    assert not refused.ok
    assert f"callboard budget set run/1 --{refused.unit} N" in refused.message
    assert budget.view(ledger, "run/1").level == "spent"
    # a limit above it is another matter
    assert budget.view(Ledger(limits=Limits(tokens=1, usd=Decimal(1), seconds=1.0)), "run/1").level == "ok"


def test_a_scope_keeps_few_of_its_calls_and_more_of_those_that_were_lost() -> None:
    ledger = Ledger()
    budget.settle(ledger, Settle(id="lost", spent=amount(10)), is_lost=True)
    for number in range(500):
        budget.settle(ledger, Settle(id=str(number), spent=amount(1)))
    assert len(ledger.closed) == budget.CLOSED_KEPT
    # its host says what it spent after all
    budget.settle(ledger, Settle(id="lost", spent=amount(25)))
    budget.settle(ledger, Settle(id="lost", spent=amount(25)))
    assert (ledger.spent.tokens, ledger.calls) == (525, 501)


def test_what_others_have_set_aside_is_not_there_and_ones_own_is() -> None:
    ledger = Ledger(limits=Limits(tokens=150))
    opened(ledger, reserve("b", step="t"))
    assert budget.grant(ledger, reserve("a"), scope="x").amount.tokens == 50
    assert budget.grant(ledger, reserve("b", step="t", want=150), scope="x").amount.tokens == 150


def test_what_is_free_is_allowed_where_no_dollar_is_left() -> None:
    ledger = Ledger(limits=Limits(usd=Decimal(1)), spent=amount(5, "1"))
    free = Reserve(id="a", step="s", least=amount(5), want=amount(50))
    dear = Reserve(id="a", step="s", least=amount(5, "0.01"), want=amount(50, "0.1"))
    assert budget.grant(ledger, free, scope="x").ok
    assert budget.grant(ledger, dear, scope="x").unit == "usd"


def test_a_settlement_counts_once_and_a_late_one_puts_the_charge_right() -> None:
    ledger = Ledger()
    opened(ledger, reserve())
    for _ in range(3):
        budget.settle(ledger, Settle(id="a", spent=amount(30, "0.3")))
    assert (ledger.spent, ledger.calls, ledger.open) == (amount(30, "0.3"), 1, {})
    # it had been taken for interrupted, and was charged with its least
    budget.settle(ledger, Settle(id="b", spent=amount(10)))
    budget.settle(ledger, Settle(id="b", spent=amount(25)))
    assert (ledger.spent.tokens, ledger.calls) == (55, 2)


def test_a_call_that_was_never_made_leaves_nothing() -> None:
    ledger = Ledger()
    opened(ledger, reserve())
    budget.settle(ledger, Settle(id="a", spent=Amount()))
    assert (ledger.open, ledger.calls, ledger.spent) == ({}, 0, Amount())


@pytest.mark.parametrize(
    ("later_s", "id_", "step", "is_over"),
    [
        (0, "a", "s", False),
        (0, "b", "s", True),
        (0, "b", "t", False),
        (899, "b", "t", False),
        (900, "b", "t", True),
    ],
)
def test_a_call_is_over_by_its_time_or_by_its_next_attempt(later_s: float, id_: str, step: str, is_over: bool) -> None:
    ledger = Ledger()
    opened(ledger, reserve("a", step="s"))
    now = NOW + timedelta(seconds=later_s)
    assert budget.is_over(ledger.open["a"], "a", reserve(id_, step=step), now=now) is is_over


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 200)), max_size=40))
def test_what_is_set_aside_and_spent_never_passes_the_limit(moves: list[tuple[str, bool, int]]) -> None:
    ledger = Ledger(limits=Limits(tokens=500))
    for id_, is_end, tokens in moves:
        if not is_end:
            found = budget.grant(ledger, reserve(id_, step=id_, least=1, want=tokens + 1), scope="x")
            if found.ok and id_ not in ledger.closed:
                ledger.open[id_] = Open(step=id_, amount=found.amount, least=amount(1), until=NOW)
        elif id_ in ledger.open:
            spent = min(tokens, ledger.open[id_].amount.tokens)
            budget.settle(ledger, Settle(id=id_, spent=amount(spent)))
        stands = budget.view(ledger, "x")
        assert stands.spent.tokens + stands.reserved.tokens <= 500


def test_limits_change_one_by_one_and_none_takes_one_away() -> None:
    limits = budget.changed(Limits(tokens=5, usd=Decimal(1)), SetBudget(tokens=None, seconds=60.0))
    assert (limits.tokens, limits.usd, limits.seconds) == (None, Decimal(1), 60.0)


@pytest.mark.parametrize(
    "wrong", [SetBudget(tokens=-1), SetBudget(usd=Decimal("NaN")), SetBudget(seconds=-0.1), SetBudget(warn=0.99)]
)
def test_limits_that_make_no_sense_are_refused(wrong: SetBudget) -> None:
    with pytest.raises(InputError):
        budget.changed(Limits(), wrong)


@pytest.mark.parametrize("scope", ["", "/", "run/", "run//1", " run/1", "run/1\n"])
def test_a_scope_has_a_form(scope: str) -> None:
    with pytest.raises(InputError, match="no scope of a budget"):
        check_scope(scope)


def test_a_day_is_one_in_utc() -> None:
    assert agent_day("planner", NOW) == "agent-day/planner/2026-11-21"
