"""What may become of an approval: who is asked for how long, who may decide, and what a grant is good for."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product

import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.agents import decision
from callboard.agents.approval import Grant
from callboard.agents.decision import DENY_AFTER_S, RISKS, Entry, Escalation, Stage
from callboard.agents.errors import ApprovalMismatchError
from callboard.runtime.errors import ConfigError, EncodeError, PayloadTooLargeError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PENDING = decision.begun(
    Entry(requester="till/t", action="Pay", payload={"sum": 1}, hash=decision.digest({"sum": 1})), NOW
)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def granted(entry: Entry = PENDING) -> Entry:
    return decision.decided(entry, "granted", by="ann", role="", now=NOW, reason="", suggestion="")


# --- the payload


class Pay(Struct):
    to: str
    sum: int


def test_equal_payloads_have_one_hash_whatever_their_order_and_class() -> None:
    wanted = hashlib.sha256('{"sum":1,"to":"zoë"}'.encode()).hexdigest()
    for payload in (Pay("zoë", 1), {"to": "zoë", "sum": 1}, {"sum": 1, "to": "zoë"}):
        assert decision.digest(payload) == wanted


@pytest.mark.parametrize(
    "other", [Pay("ann", 2), Pay("Ann", 1), {"to": "ann"}, {"to": "ann", "sum": 1.0}, None, [], ""]
)
def test_any_change_is_another_hash(other: object) -> None:
    assert decision.digest(other) != decision.digest(Pay("ann", 1))
    grant = Grant(approval="x", action="Pay", hash=decision.digest(Pay("ann", 1)), by="ann")
    grant.check(Pay("ann", 1))
    with pytest.raises(ApprovalMismatchError, match=r"approval x was given for Pay .* ask for approval of what is"):
        grant.check(other)


def test_what_nobody_can_read_is_refused() -> None:
    with pytest.raises(PayloadTooLargeError, match="ask for approval of its name and its digest"):
        decision.digest("x" * decision.MAX_PAYLOAD_BYTES)
    for odd in (float("nan"), object()):
        with pytest.raises(EncodeError):
            decision.digest(odd)


# --- time


@pytest.mark.parametrize(
    ("policy", "risk", "timeout", "stages", "then"),
    [
        ("deny", "low", None, [("ops", DENY_AFTER_S)], "deny"),
        ("deny", "critical", "3d", [("ops", 3 * 86400.0)], "deny"),
        ("wait", "high", None, [("ops", 0.0)], "wait"),
        ("tiered", "low", None, [("ops", 3600.0)], "deny"),
        ("tiered", "medium", None, [("ops", DENY_AFTER_S)], "deny"),
        ("tiered", "high", None, [("ops", 86400.0)], "deny"),
        ("tiered", "critical", None, [("ops", 0.0)], "wait"),
        ("tiered", "critical", 60, [("ops", 60.0)], "deny"),
        (Escalation(chain=("lead",), each="1h"), "low", None, [("ops", 3600.0), ("lead", 3600.0)], "deny"),
        (Escalation(chain=("lead",), then="wait"), "low", 5, [("ops", 5.0), ("lead", 5.0)], "wait"),
        ({"low": "wait", "high": "tiered"}, "low", None, [("ops", 0.0)], "wait"),
        ({"low": "wait", "high": "tiered"}, "high", None, [("ops", 86400.0)], "deny"),
        ({"low": "wait", "high": "tiered"}, "medium", None, [("ops", DENY_AFTER_S)], "deny"),
    ],
)
def test_policies(policy: object, risk: str, timeout: object, stages: object, then: str) -> None:
    found = decision.stages_of(policy, to="ops", risk=risk, timeout=timeout)  # type: ignore[arg-type] # a table
    assert ([(stage.to, stage.for_s) for stage in found[0]], found[1]) == (stages, then)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"policy": "never"}, "there are wait, deny, tiered"),
        ({"policy": {"low": "never"}, "risk": "low"}, "'never' does not exist"),
        ({"risk": "huge"}, "there are low, medium, high, critical"),
        ({"timeout": 0}, "nobody could decide"),
        ({"timeout": "soon"}, "soon"),
        ({"policy": "wait", "timeout": "1h"}, "take `deny`"),
    ],
)
def test_policies_that_cannot_be(given: dict[str, object], words: str) -> None:
    whole = {"policy": "deny", "to": "ops", "risk": "medium", "timeout": None, **given}
    with pytest.raises(ConfigError, match=words):
        decision.stages_of(whole.pop("policy"), **whole)  # type: ignore[arg-type] # the mistake under test


def test_one_after_the_other_is_asked_and_then_it_is_denied() -> None:
    entry = decision.begun(replace(PENDING, stages=(Stage("a", 10), Stage("b", 20), Stage("c", 30))), NOW)
    assert (entry.to, entry.until) == ("a", later(10))
    entry = decision.overdue(entry, 0, later(10))
    assert (entry.to, entry.until, entry.status) == ("b", later(30), "pending")
    assert decision.overdue(entry, 0, later(11)) is entry  # a late firing of the stage before
    entry = decision.overdue(decision.overdue(entry, 1, later(30)), 2, later(60))
    assert (entry.status, entry.by, entry.until) == ("denied", decision.TIMEOUT, None)
    assert entry.reason == "nobody decided in time; asked a, then b, then c"
    assert decision.overdue(entry, 2, later(61)) is entry


def test_a_chain_may_end_in_waiting() -> None:
    entry = decision.begun(replace(PENDING, stages=(Stage("a", 10),), then="wait"), NOW)
    entry = decision.overdue(entry, 0, later(10))
    assert (entry.status, entry.until) == ("pending", None)


def test_a_decision_before_the_time_stands() -> None:
    entry = granted(replace(PENDING, stages=(Stage("a", 10),)))
    assert decision.overdue(entry, 0, later(10)) is entry


# --- decisions


@pytest.mark.parametrize(
    ("to", "names", "may"),
    [
        ("", ("ann", ""), True),
        ("ops", ("ops", ""), True),
        ("ops", ("ann", "ops"), True),
        ("ops", ("ann", ""), False),
        ("ops, ann", ("ann", ""), True),
        ("ops,ann", ("an", ""), False),
        ("ops", ("", ""), False),
    ],
)
def test_who_may_decide(to: str, names: tuple[str, str], may: bool) -> None:
    assert decision.may_decide(to, *names) is may


def test_only_what_waits_can_be_decided() -> None:
    for status, given in product(("granted", "denied", "suggested", "used", "expired", "withdrawn"), (None, "x")):
        found = decision.refusal(replace(PENDING, status=status), by="ann", role="", given_hash=given)
        assert found is not None
        assert found.code == "decided"
    assert decision.refusal(PENDING, by="ann", role="", given_hash=PENDING.hash) is None
    assert decision.refusal(PENDING, by="ann", role="", given_hash=None) is None


# --- use


def test_a_grant_is_used_by_one_turn() -> None:
    hash_ = PENDING.hash
    used, refused = decision.spent(granted(), by="till/t/7", given_hash=hash_, now=later(1))
    assert (used.status, used.used_by, refused) == ("used", "till/t/7", None)
    assert decision.spent(used, by="till/t/7", given_hash=hash_, now=later(2)) == (used, None)
    again, refused = decision.spent(used, by="till/t/8", given_hash=hash_, now=later(2))
    assert refused is not None
    assert (again, refused.code) == (used, "used")


def test_a_grant_lapses() -> None:
    entry = granted(replace(PENDING, valid_s=60))
    kept, refused = decision.spent(entry, by="t", given_hash=PENDING.hash, now=later(59))
    assert (kept.status, refused) == ("used", None)
    lapsed, refused = decision.spent(entry, by="t", given_hash=PENDING.hash, now=later(60))
    assert refused is not None
    assert (lapsed.status, refused.code) == ("expired", "expired")


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (Entry(), "unknown"),
        (PENDING, "pending"),
        (replace(PENDING, status="denied"), "denied"),
        (replace(PENDING, status="suggested"), "suggested"),
        (replace(PENDING, status="withdrawn"), "withdrawn"),
        (replace(PENDING, status="expired"), "expired"),
        (granted(replace(PENDING, hash="0" * 64)), "hash"),
    ],
)
def test_what_is_no_grant_of_this_payload_is_good_for_nothing(entry: Entry, code: str) -> None:
    after, refused = decision.spent(entry, by="t", given_hash=PENDING.hash, now=NOW)
    assert refused is not None
    assert (after, refused.code) == (entry, code)


def test_higher_risks_have_no_less_time() -> None:
    times = [decision.TIERS[risk] or float("inf") for risk in RISKS]
    assert all(low <= high for low, high in pairwise(times))
