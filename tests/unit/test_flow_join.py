"""When a join has waited enough, and what it comes to: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from callboard.agents import join as joins
from callboard.agents.errors import FlowError
from callboard.agents.message import AgentResult
from callboard.agents.run_record import Join, Outcome, PartStatus
from callboard.runtime.errors import InputError

STATUS: dict[str, PartStatus] = {"d": "done", "f": "failed", "l": "lost"}
NAMES = "abc"


def found(ended: str) -> dict[str, Outcome]:
    """``d-l``: a is done, b has not ended, c is lost."""
    return {
        name: Outcome(name=name, status=STATUS[sign], error="why")
        for name, sign in zip(NAMES, ended, strict=True)
        if sign != "-"
    }


WAITS, ENDS, FAILS = "waits", "ends", "fails"

# optional branches, quorum, how they ended, whether it is late: what follows
TABLE = [
    ("", None, "---", False, WAITS),
    ("", None, "dd-", False, WAITS),
    ("", None, "ddd", False, ENDS),
    # a required one that fails ends it at once, an optional one does not
    ("", None, "f--", False, FAILS),
    ("a", None, "f--", False, WAITS),
    ("a", None, "fdd", False, ENDS),
    ("abc", None, "fff", False, ENDS),
    ("ab", None, "ddf", False, FAILS),
    # a lost one leaves it partial, but nothing at all is no result
    ("", None, "ld-", False, WAITS),
    ("", None, "ldd", False, ENDS),
    ("", None, "lll", False, FAILS),
    ("", None, "d--", True, ENDS),
    ("", None, "---", True, FAILS),
    ("abc", None, "---", True, ENDS),
    ("", None, "df-", True, FAILS),
    # a quorum says how many, and failures count only against it
    ("", 2, "f--", False, WAITS),
    ("", 2, "dd-", False, WAITS),
    ("", 2, "ddf", False, ENDS),
    ("", 2, "fl-", False, FAILS),
    ("", 2, "dd-", True, ENDS),
    ("", 2, "d--", True, FAILS),
    ("abc", 2, "dff", False, FAILS),
]


@pytest.mark.parametrize(("optional", "quorum", "ended", "is_late", "follows"), TABLE)
def test_when_a_join_ends(optional: str, quorum: int | None, ended: str, *, is_late: bool, follows: str) -> None:
    join = Join(name="j", expected=list(NAMES), optional=list(optional), quorum=quorum)
    if follows == FAILS:
        with pytest.raises(FlowError, match="'j'"):
            joins.is_enough(join, found(ended), is_late=is_late)
    else:
        assert joins.is_enough(join, found(ended), is_late=is_late) == (follows == ENDS)


@pytest.mark.parametrize(
    ("ended", "is_late", "follows"),
    [
        ("---", False, WAITS),
        ("f--", False, WAITS),
        ("fd-", False, ENDS),
        ("ffl", False, FAILS),
        ("---", True, FAILS),
        ("d--", True, ENDS),
    ],
)
def test_the_first_success_is_enough(ended: str, *, is_late: bool, follows: str) -> None:
    join = Join(name="j", expected=list(NAMES), how="first")
    if follows == FAILS:
        with pytest.raises(FlowError, match="one result is out of reach"):
            joins.is_enough(join, found(ended), is_late=is_late)
    else:
        assert joins.is_enough(join, found(ended), is_late=is_late) == (follows == ENDS)


def test_whoever_is_not_waited_for_is_lost_or_not_needed() -> None:
    join = Join(name="j", expected=list(NAMES))
    late = joins.settle(join, found("d-f"), is_late=True)
    assert [each.status for each in late] == ["done", "lost", "failed"]
    assert "deadline" in late[1].error
    early = joins.settle(join, found("-d-"), is_late=False)
    assert [each.status for each in early] == ["cancelled", "done", "cancelled"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"count": 0}, "at least one"),
        ({"count": 2, "names": ["x", "x"]}, "two branches are named 'x'"),
        ({"how": "guess"}, "collect, vote, first, reduce"),
        ({"quorum": 4}, "quorum is 4 and there are 3 branches: take 1 to 3"),
        ({"quorum": 0}, "take 1 to 3"),
        ({"cap": 0}, "cap is 0"),
        ({"deadline_s": -1.0}, "deadline_s is -1, which has passed"),
        ({"deadline_s": 0.0}, "which has passed"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], text: str) -> None:
    usual: dict[str, Any] = {"count": 3, "names": [], "how": "collect", "quorum": None, "cap": None, "deadline_s": None}
    wanted = usual | given
    joins.check(usual.pop("count"), **usual)
    with pytest.raises(InputError, match=text):
        joins.check(wanted.pop("count"), **wanted)


def test_most_votes_win_and_the_earliest_of_equals() -> None:
    def says(text: str) -> AgentResult:
        return AgentResult(status="done", text=text)

    winner, votes = joins.vote({"a": says("Yes"), "b": says("no"), "c": says(" yes ")})
    assert winner.text == "Yes"
    assert votes == {'"yes"': 2, '"no"': 1}
    winner, _ = joins.vote({"a": says("no"), "b": says("yes")})
    assert winner.text == "no"
    winner, votes = joins.vote({"a": 3, "b": 5, "c": 7}, key=lambda found: found % 4)
    assert (winner, votes) == (3, {"3": 2, "1": 1})
    with pytest.raises(FlowError, match="no branch has a result"):
        joins.vote({})
