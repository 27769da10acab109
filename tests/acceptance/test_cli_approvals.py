"""Approvals from the command line: somebody asks, somebody looks and decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.console import Background, Console, eventually

TILL = """
from msgspec import Struct
from callboard import Actor, on
from callboard.agents.approval import COMPANIONS, approve

class Refund(Struct):
    order: str
    amount: int

class Till(Actor, name="till"):
    companions = COMPANIONS

    class State(Struct):
        paid: list[str] = []

    @on
    async def pay(self, m: Refund) -> str:
        grant = await approve(self, m, to="ops", risk="high", context={"customer": "ann"})
        self.state.paid.append(f"{m.order} {m.amount} by {grant.by}")
        return grant.by
"""


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("approvals"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def dev(console: Console) -> Background:
    (console.folder / "till.py").write_text(TILL)
    return console.dev("till.py")


def asked(console: Console, order: str) -> dict[str, Any]:
    """Have it asked, and return what stands."""
    assert console.run("tell", "till/t", "Refund", f'{{"order": "{order}", "amount": 3}}').status == 0
    found: list[dict[str, Any]] = []

    def look() -> bool:
        listed = console.run("approvals", "ls", "--json")
        found[:] = [each for each in listed.json if each["payload"]["order"] == order]
        return bool(found)

    eventually(look)
    return found[0]


def test_nobody_waits_at_first(console: Console, dev: Background) -> None:
    run = console.run("approvals", "ls")
    assert (run.status, run.err) == (0, "nobody waits for an approval\n")
    assert console.run("approvals", "ls", "--json").json == []


def test_it_is_shown_and_granted(console: Console, dev: Background) -> None:
    found = asked(console, "a")
    assert (found["to"], found["risk"], found["status"], found["requester"]) == ("ops", "high", "pending", "till/t")
    id_, hash_ = found["id"], found["hash"]
    listed = console.run("approvals", "ls", "--to", "ops")
    assert id_ in listed.out
    assert "Refund" in listed.out
    assert console.run("approvals", "ls", "--to", "sales", "--json").json == []
    assert console.run("approvals", "ls", "--to", "opps").err == "nobody waits for an approval; did you mean ops?\n"
    misspelt = console.run("approvals", "grant", f"{id_[:-1]}x", "--as", "ops")
    assert (misspelt.status, f"; did you mean {id_}?" in misspelt.err) == (5, True), misspelt.err
    shown = console.run("approvals", "show", id_[:6])
    assert hash_ in shown.out
    assert '"customer": "ann"' in shown.out
    assert f"callboard approvals grant {id_} --as ops --hash {hash_[:12]}" in shown.err
    assert console.run("approvals", "show", id_, "--json").json == found
    wrong = console.run("approvals", "grant", id_, "--as", "ops", "--hash", "0" * 12)
    assert (wrong.status, "error[approval_refused]" in wrong.err) == (4, True)
    stranger = console.run("approvals", "grant", id_, "--by", "ann")
    assert (stranger.status, "only ops may decide this, not ann" in stranger.err) == (4, True)
    run = console.run("approvals", "grant", id_, "--by", "bob", "--as", "ops", "--hash", hash_[:12], "--json")
    assert (run.status, run.json["status"], run.json["by"]) == (0, "granted", "bob")
    eventually(lambda: console.run("approvals", "show", id_, "--json").json["status"] == "used")
    assert console.run("agents", "state", "till/t", "--json").json == {"paid": ["a 3 by bob"]}
    second = console.run("approvals", "deny", id_, "--as", "ops")
    assert second.status == 4
    assert "it was granted by bob at" in second.err
    assert "and the grant was used: nothing was changed" in second.err
    used = console.run("approvals", "ls", "--status", "used", "--json").json
    assert [each["id"] for each in used] == [id_]
    events = [each["body"].get("by") for each in console.run("log", "--subject", "cb.event.approval.>", "--json").lines]
    assert "bob" in events


def test_it_is_denied_or_answered_with_a_suggestion(console: Console, dev: Background) -> None:
    first = asked(console, "b")["id"]
    run = console.run("approvals", "deny", first, "--as", "ops", "--reason", "no money")
    assert (run.status, run.out) == (0, f"{first} is denied\n")
    second = asked(console, "c")["id"]
    run = console.run("approvals", "suggest", second, "a voucher", "--as", "ops", "--json")
    assert (run.status, run.json["suggestion"]) == (0, "a voucher")
    assert console.run("approvals", "ls", "--json").json == []


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["show", "nobody"], 5, "there is no approval 'nobody'"),
        (["grant", "nobody"], 5, "callboard approvals ls"),
        (["grant", "*"], 5, "there is no approval"),
        (["ls", "--status", "odd"], 2, "odd"),
        (["suggest", "x"], 2, "SUGGESTION"),
    ],
)
def test_what_cannot_be_is_said(console: Console, dev: Background, args: list[str], status: int, said: str) -> None:
    run = console.run("approvals", *args)
    assert (run.status, said in run.err) == (status, True), run.err
