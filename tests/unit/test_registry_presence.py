"""Liveness by beats and the observer's own clock; time is a number here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from callboard.runtime.actor.address import Address
from callboard.runtime.beat import ActorLoad, Beat, WorkerStatus
from callboard.runtime.registry.message import AgentBeat
from callboard.runtime.registry.presence import Presence
from callboard.runtime.registry.record import AgentRecord
from callboard.runtime.registry.reservation import Reservations

AT = datetime(2026, 1, 1, tzinfo=UTC)
OWN = AgentRecord(type="node", key="a", capabilities=[], registered_at=AT, instance="p1")
HOSTED = AgentRecord(type="scribe", key="ann", capabilities=[], registered_at=AT, is_hosted=True)
PARTITION = Address("scribe", "ann").partition(4)


def beat(worker: str, *, owns: bool = True, status: WorkerStatus = "ready", skew_s: float = 0.0, **busy: int) -> Beat:
    load = ActorLoad(
        kind="scribe",
        partitions=[PARTITION] if owns else [],
        active=1,
        running=0,
        version=1,
        fingerprint="",
        of=4,
        busy=busy,
    )
    at = AT + timedelta(seconds=skew_s)
    return Beat(
        v=1, worker=worker, host="h", pid=1, version="1", status=status, started_at=at, at=at, fetched_at=None,
        labels={}, capabilities=[], actors=[load],
    )  # fmt: skip


def settled(me: str = "") -> Presence:
    """Return a presence whose first grace time is over at 10 s."""
    return Presence(now_s=0.0, me=me)


def test_an_agent_that_beats_is_idle_then_suspect_then_offline() -> None:
    presence = settled()
    presence.heard_agent("node", "a", 10.0)
    assert presence.standing(OWN, 11.0).status == "idle"
    assert presence.standing(OWN, 12.5).status == "suspect"
    assert presence.standing(OWN, 15.5).status == "offline"
    presence.heard_agent("node", "a", 16.0)
    assert presence.standing(OWN, 16.1).status == "idle"


def test_a_beat_tells_what_an_agent_does() -> None:
    presence = settled()
    presence.heard_agent("node", "a", 10.0, AgentBeat(type="node", key="a", busy=2, waiting=1))
    found = presence.standing(OWN, 10.5)
    assert (found.status, found.busy, found.waiting) == ("busy", 2, 1)
    presence.heard_agent("node", "a", 11.0, AgentBeat(type="node", key="a", status="draining"))
    assert presence.standing(OWN, 11.5).status == "draining"


def test_a_hosted_agent_lives_as_long_as_a_worker_hosts_its_type() -> None:
    presence = settled()
    presence.heard(beat("w1", ann=3), 10.0)
    presence.heard(beat("w2", owns=False), 10.0)
    found = presence.standing(HOSTED, 10.5)
    assert (found.status, found.busy, found.waiting, found.worker) == ("busy", 1, 2, "w1")
    presence.heard(beat("w2", owns=False), 12.4)
    assert presence.standing(HOSTED, 12.5).status == "suspect"
    presence.heard(beat("w2"), 13.5)
    assert presence.standing(HOSTED, 13.6).status == "idle"
    assert presence.standing(HOSTED, 13.6).worker == "w2"
    assert presence.standing(HOSTED, 20.0).status == "offline"


def test_a_death_that_was_noticed_sooner_counts_at_once() -> None:
    dead: set[str] = set()
    presence = Presence(now_s=0.0, is_dead=dead.__contains__)
    presence.heard(beat("w1"), 10.0)
    assert presence.standing(HOSTED, 10.2).status == "idle"
    dead.add("w1")
    assert presence.standing(HOSTED, 10.3).status == "offline"


def test_a_worker_that_says_goodbye_is_gone_and_drains_before() -> None:
    presence = settled()
    presence.heard(beat("w1", status="draining"), 10.0)
    assert presence.standing(HOSTED, 10.1).status == "draining"
    presence.heard(beat("w1", status="stopped"), 10.2)
    assert presence.standing(HOSTED, 10.3).status == "offline"
    # one that was on its way
    presence.heard(beat("w1"), 10.4)
    assert presence.standing(HOSTED, 10.5).status == "offline"


def test_a_clock_that_is_an_hour_off_does_not_matter() -> None:
    presence = settled()
    presence.heard(beat("w1", skew_s=3600.0), 10.0)
    assert presence.standing(HOSTED, 10.5).status == "idle"
    presence.heard(beat("w1", skew_s=-3600.0), 11.0)
    assert presence.standing(HOSTED, 11.5).status == "idle"


def test_after_a_gap_of_our_own_everybody_who_lived_counts_as_alive_for_a_while() -> None:
    presence = settled()
    presence.heard(beat("w1"), 10.0)
    presence.heard_agent("node", "a", 10.0)
    presence.gap(40.0, since_s=10.5)
    assert presence.standing(HOSTED, 41.0).status == "idle"
    assert presence.standing(OWN, 41.0).status == "idle"
    assert presence.standing(HOSTED, 44.5).status == "offline"
    assert presence.standing(OWN, 45.5).status == "offline"


def test_who_was_dead_before_a_gap_is_dead_after_it_until_heard() -> None:
    presence = settled()
    presence.heard(beat("w1"), 10.0)
    presence.heard_agent("node", "a", 10.0)
    presence.gap(40.0, since_s=20.0)
    assert presence.standing(HOSTED, 40.5).status == "offline"
    assert presence.standing(OWN, 40.5).status == "offline"
    presence.heard(beat("w1"), 41.0)
    presence.heard_agent("node", "a", 41.0)
    assert presence.standing(HOSTED, 41.5).status == "idle"
    assert presence.standing(OWN, 41.5).status == "idle"


def test_own_beats_that_stay_away_make_nobody_dead() -> None:
    presence = settled("me")
    for second in range(10):
        presence.heard(beat("me", owns=False), float(second))
        presence.heard(beat("w1"), float(second))
    assert presence.standing(HOSTED, 14.0).status == "idle"
    presence.heard(beat("me", owns=False), 30.0)
    assert presence.standing(HOSTED, 31.0).status == "idle"
    for second in range(31, 36):
        presence.heard(beat("me", owns=False), float(second))
    assert presence.worker("w1", 34.5) == "offline"


def test_a_paused_agent_is_paused_whatever_the_beats_say() -> None:
    presence = settled()
    presence.heard(beat("w1", ann=1), 10.0)
    record = AgentRecord(
        type="scribe", key="ann", capabilities=[], registered_at=AT, is_hosted=True, status="paused", problem="by Eva"
    )
    found = presence.standing(record, 10.5)
    assert (found.status, found.problem) == ("paused", "by Eva")


def test_a_pick_counts_until_a_beat_shows_it_or_its_time_is_over() -> None:
    reservations = Reservations()
    reservations.add("a/1", 10.0)
    reservations.add("a/1", 10.9)
    assert reservations.count("a/1", 11.0) == 2
    reservations.shown("a/1", 11.0)
    assert reservations.count("a/1", 11.0) == 1
    assert reservations.count("a/1", 13.0) == 0
    assert reservations.open() == []


def test_a_request_that_ended_frees_its_place_or_one_that_a_beat_showed() -> None:
    reservations = Reservations()
    reservations.add("a/1", 10.0)
    reservations.served("a/1", 0.5)
    assert (reservations.count("a/1", 10.1), reservations.ended("a/1")) == (0, 0)
    reservations.served("a/1", -1.0)
    assert (reservations.ended("a/1"), reservations.latency_s("a/1")) == (1, 0.5)
    reservations.shown("a/1", 11.0)
    assert reservations.ended("a/1") == 0
