"""The report of the bench beside the peers says what the tasks noted: who lost one loses, and durability counts."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import msgspec
import pytest

from bench.peers import catalog, notes, page, result, servers, text, venvs
from bench.peers.apps.side import BEGAN, ENDED, RAN, RECORD
from bench.peers.measure import Plan, Round
from bench.peers.notes import Crash, Note
from bench.peers.peer import Peer, PeerUnavailableError
from bench.peers.reasons import REASONS
from bench.peers.result import MEASURES, Result, Row

DEAD, HEIR = 7, 8


def row(name: str, *, strength: int = 1, reason: str = "", rounds: list[Round] | None = None) -> Row:
    peer = name.partition(":")[0]
    return Row(
        name=name, peer=peer, versions=f"{peer} 1.2", durability="synced <sometimes>", recovery="ack wait 30 s",
        strength=strength, worker="1 process", stores="nothing", reason=reason, rounds=rounds or [],
    )  # fmt: skip


def run(*rows: Row) -> Result:
    return Result(facts={"cores": 2, "date": "today"}, plan=msgspec.to_builtins(Plan()), rows=list(rows))


def slow_run(n: int, pid: int, *, at_s: float, ends: bool) -> list[Note]:
    begun = Note(n, BEGAN, int(at_s * 1e9), pid)
    return [begun, Note(n, ENDED, int((at_s + 3) * 1e9), pid)] if ends else [begun]


def killed(*runs: list[Note], tasks: int = 1) -> Crash:
    return notes.after_kill(chain.from_iterable(runs), range(tasks), killed_ns=int(2e9), dead={DEAD})


def test_a_dead_workers_task_that_begins_again_is_recovered() -> None:
    crash = killed(slow_run(0, DEAD, at_s=1, ends=False), slow_run(0, HEIR, at_s=6.5, ends=True))
    assert crash == Crash(hit=1, again_s=[4.5], lost=0, doubled=0)
    assert result.recovery_s(Round(crash=crash)) == 4.5


def test_a_task_that_never_ends_is_lost_although_another_one_was_recovered() -> None:
    crash = killed(
        slow_run(0, DEAD, at_s=1, ends=False),
        slow_run(1, DEAD, at_s=1, ends=False),
        slow_run(1, HEIR, at_s=6, ends=True),
        tasks=2,
    )
    assert (crash.hit, crash.lost) == (2, 1)
    assert result.words(result.recovery_s(Round(crash=crash)) or 0, "s") == "not in time"


def test_a_second_run_beside_a_living_worker_is_doubled_and_so_is_a_second_end() -> None:
    beside = killed(slow_run(0, HEIR, at_s=1, ends=True), slow_run(0, HEIR + 1, at_s=3, ends=False))
    twice = killed(
        slow_run(0, DEAD, at_s=1, ends=False),
        slow_run(0, HEIR, at_s=5, ends=True),
        slow_run(0, HEIR + 1, at_s=5, ends=True),
    )
    assert (beside.doubled, twice.doubled) == (1, 1)


def test_notes_are_counted_from_whole_records(tmp_path: Path) -> None:
    whole = b"".join(RECORD.pack(n, RAN, at_ns) for n, at_ns in ((0, 20), (2, 10), (2, 30)))
    (tmp_path / "41.notes").write_bytes(whole + b"half")
    found = notes.read(tmp_path)
    assert notes.count(tmp_path) == len(found) == 3
    assert notes.first_run(found) == {0: 20, 2: 10}
    assert notes.missing(found, range(3)) == {1}
    assert notes.repeated(found) == 1


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [result.percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert result.percentile([], 0.5) is None


def test_we_are_compared_with_rows_of_at_least_our_durability_alone() -> None:
    rows = [
        row("callboard:always", strength=2, rounds=[Round(rate=100)]),
        row("callboard:default", rounds=[Round(rate=500), Round(rate=700), Round(rate=600)]),
        row("fast:memory", strength=0, rounds=[Round(rate=9000)]),
        row("fast:soon", strength=1, rounds=[Round(rate=650)]),
        row("fast:always", strength=2, rounds=[Round(rate=90)]),
    ]
    places = {place.row: place for place in result.places(rows)}
    assert places["callboard:always"].ahead == []
    assert places["callboard:always"].rivals == 1
    assert places["callboard:default"].median == 600
    assert places["callboard:default"].ahead == [("fast:soon", 650)]
    assert "not first: callboard:default" in text.render(run(*rows))
    assert REASONS["rate"].cost in page.render(run(*rows)).replace("&#x27;", "'")


def test_every_measure_has_a_reason_to_give() -> None:
    assert REASONS.keys() == {measure.key for measure in MEASURES}


def test_a_peer_that_loses_a_task_is_shown_as_losing_and_one_that_does_not_is_not() -> None:
    losing, keeping = row("loser:x", rounds=[Round(rate=50, lost=1)]), row("keeper:x", rounds=[Round(rate=40)])
    both, fine = page.render(run(losing, keeping)), page.render(run(keeping))
    assert "in loser:x." in both
    assert ">not in time<" in both
    assert ">not in time<" not in fine
    assert msgspec.json.decode(result.as_json(run(losing)))["rows"][0]["lost"] == 1


def test_a_peer_that_cannot_be_had_keeps_its_row_with_the_reason() -> None:
    found = run(row("gone:x", reason="no redis-server on this machine"), row("here:x", rounds=[Round(rate=1)]))
    assert "no redis-server on this machine" in page.render(found)
    assert "gone:x: no redis-server on this machine" in text.render(found)


def test_a_measure_that_a_peer_cannot_be_asked_for_is_no_figure_but_a_reason() -> None:
    asked = row("here:x", rounds=[Round(submit_rate=7)])
    unasked = msgspec.structs.replace(asked, name="there:x", cannot={"submit": "it keeps calls itself"})
    found = run(row("callboard:x", rounds=[Round(submit_rate=5)]), asked, unasked)
    (place,) = [place for place in result.places(found.rows) if place.measure.key == "submit"]
    assert place.ahead == [("here:x", 7)]
    assert "it keeps calls itself" in page.render(found)
    assert "there:x has no Tasks a second from one sender: it keeps calls itself" in text.render(found)


def test_the_page_asks_nobody_for_anything_and_states_durability_in_each_row() -> None:
    html = page.render(run(row("here:x", rounds=[Round(rate=1)]), row("there:x", rounds=[Round(rate=2)])))
    assert not re.search(r"(?:src|href)=\"(?!#|data:)|url\(|@import", html)
    assert html.count("synced &lt;sometimes&gt;") == 2


def test_rows_are_chosen_by_peer_or_by_row() -> None:
    names = [catalog.row_name(*found) for found in catalog.chosen("celery:always, callboard")]
    assert names == ["callboard:default", "callboard:always", "celery:always"]
    with pytest.raises(ValueError, match=r"no peer or row sellery; there are callboard:default"):
        catalog.chosen("sellery")


@pytest.mark.parametrize("peer", catalog.PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_pinned_and_every_row_says_how_it_stores(peer: Peer) -> None:
    assert all(variant.durability and variant.recovery for variant in peer.variants)
    assert peer.cannot.keys() <= {measure.key for measure in MEASURES}
    assert (Path(catalog.__file__).parent / "apps" / f"{peer.module.rpartition('.')[2]}.py").exists()
    if peer.has_venv:
        pins = venvs.requirements_of(peer).read_text("utf-8").splitlines()
        assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins)
        installed = {pin.partition("==")[0].lower() for pin in pins}
        assert {package.lower() for package in peer.packages} <= installed


def test_a_missing_server_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerUnavailableError, match=r"install the package bread, or name .* BREAD_SERVER"):
        servers.find("bread-server", package="bread")
