"""A link whose server falls silent asks the other servers before it leaves, and knows which answers prove a leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec import json

from callboard.runtime import events
from callboard.runtime.bus import jetstream_state, jetstream_wire
from callboard.runtime.bus.base import PubAck
from callboard.runtime.bus.jetstream_link import Proof
from callboard.runtime.bus.jetstream_scout import Scouts
from callboard.runtime.bus.jetstream_state import LinkState
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import BusConnectError, ConflictError, NoLeaderError
from tests.support.eventually import eventually

PROOF = Proof("ask", lambda data: data == b"led")


class FakeLink(LinkState):
    """A link that stands, whose other servers are told by ``led``."""

    def __init__(self, others: Sequence[str] = ("b", "c")) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []
        super().__init__(
            servers="a", clock=SYSTEM_CLOCK, on_event=lambda event, fields: self.told.append((event, fields))
        )
        self.is_up = True
        self.led = ""
        self.looks = 0
        self.left: list[str] = []
        self.recalled = 0
        self._elsewhere = list(others)

    @property
    def is_seeking(self) -> bool:
        """Whether other servers are being asked."""
        return self._is_seeking

    def fall_silent(self) -> None:
        """Let three requests run into their timeouts, after a while without an answer."""
        self._answered_at -= 2.0
        for _ in range(3):
            self.unanswered()

    def _has_link(self) -> bool:
        return True

    def _entered(self) -> None:
        pass

    def _left(self) -> None:
        pass

    async def _leave(self, to: str = "") -> None:
        self.left.append(to)

    async def _replace(self) -> None:
        pass

    def _others(self) -> list[str]:
        return self._elsewhere

    async def _scout(self, urls: Sequence[str], proof: Proof) -> str | None:
        assert proof is PROOF
        self.looks += 1
        return self.led if self.led in urls else ""

    async def _recall(self) -> None:
        self.recalled += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream_state, "_SEEK_EVERY_S", 0.001)


async def test_during_an_election_the_link_stays_and_looks_on() -> None:
    link = FakeLink()
    link.proving(PROOF)
    link.fall_silent()
    await eventually(lambda: link.looks > 3)
    assert not link.left
    link.answered()
    await eventually(lambda: not link.is_seeking)
    assert not link.left
    assert link.recalled == 1
    assert not link.told


async def test_it_goes_to_the_server_that_has_found_a_leader() -> None:
    link = FakeLink()
    link.proving(PROOF)
    link.fall_silent()
    await eventually(lambda: link.looks > 3)
    link.led = "c"
    await eventually(lambda: link.left)
    assert link.left == ["c"]
    assert [event for event, _ in link.told] == [events.BUS_RECONNECT_FORCED]
    assert link.told[0][1]["to"] == "c"


async def test_further_timeouts_begin_no_second_search() -> None:
    link = FakeLink()
    link.proving(PROOF)
    link.fall_silent()
    await eventually(lambda: link.looks > 1)
    link.fall_silent()
    link.led = "b"
    await eventually(lambda: not link.is_seeking)
    assert link.left == ["b"]


@pytest.mark.parametrize("knows", ["no other server", "no question"])
async def test_without_anybody_to_ask_it_leaves_at_once(knows: str) -> None:
    link = FakeLink(() if knows == "no other server" else ("b",))
    if knows == "no other server":
        link.proving(PROOF)
    link.fall_silent()
    await eventually(lambda: link.left)
    assert link.left == [""]


async def test_a_search_in_vain_ends_by_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream_state, "_SEEK_S", 0.02)
    link = FakeLink()
    link.proving(PROOF)
    link.fall_silent()
    await eventually(lambda: link.left)
    assert link.left == [""]


# --- what proves a leader


def _info(*active_s: float, leader: str = "a") -> dict[str, Any]:
    replicas = [{"name": "x", "active": int(each * 1e9)} for each in active_s]
    return {"config": {"name": "S"}, "cluster": {"leader": leader, "replicas": replicas}}


@pytest.mark.parametrize(
    ("info", "is_led"),
    [
        (_info(0.1, 0.2), True),
        (_info(0.1, 9.0), True),
        (_info(2.0, 2.0), None),
        (_info(4.0, 5.0), False),
        (_info(), True),
        (_info(0.1, 0.1, leader=""), None),
        ({"config": {"name": "S"}}, True),
        ({"streams": ["S"]}, None),
    ],
)
def test_a_leader_proves_itself_by_followers_heard_just_now(info: dict[str, Any], is_led: bool | None) -> None:
    assert jetstream_wire.is_led(info) is is_led
    assert jetstream_wire.shows_leader(json.encode(info)) is (is_led is True)


def test_what_is_no_answer_about_a_stream_shows_no_leader() -> None:
    assert not jetstream_wire.shows_leader(b"")
    assert not jetstream_wire.shows_leader(b"[]")
    assert not jetstream_wire.shows_leader(b'{"error":{"code":503,"err_code":10008}}')


@pytest.mark.parametrize(
    ("answer", "is_proof"),
    [
        (PubAck("S", 1), True),
        (True, True),
        (None, None),
        (PubAck("S", 1, is_duplicate=True), None),
        (ConflictError("wrong last sequence", last_seq=1), None),
        (NoLeaderError("none"), False),
        # a first copy is on its way: a leader that was cut off says so for as long as it thinks that it leads
        (jetstream_wire.to_error(400, 10158, "duplicate message id is in process", what="x"), False),
    ],
)
def test_only_what_needs_a_majority_proves_a_leader(answer: object, is_proof: bool | None) -> None:
    assert jetstream_wire.proves(answer) is is_proof


# --- scouts


class FakeScout:
    """A connection whose server answers ``data``."""

    is_connected = True

    def __init__(self, data: Callable[[], bytes]) -> None:
        self._data = data
        self.is_closed = False

    async def ask(self, _subject: str, _timeout_s: float) -> bytes:
        return self._data()

    async def close(self) -> None:
        self.is_closed = True


async def test_scouts_find_the_one_server_that_is_led_and_are_kept_until_recalled() -> None:
    dialled: list[str] = []
    made: list[FakeScout] = []
    answers = {"b": b"", "c": b""}

    async def dial(url: str, _within_s: float) -> FakeScout:
        dialled.append(url)
        if url == "away":
            message = "nobody there"
            raise BusConnectError(message)
        made.append(FakeScout(lambda: answers[url]))
        return made[-1]

    scouts = Scouts(dial)
    assert await scouts.find(["b", "away", "c"], PROOF) == ""
    answers["c"] = b"led"
    assert await scouts.find(["b", "away", "c"], PROOF) == "c"
    assert dialled == ["b", "away", "c", "away"]
    await scouts.recall()
    assert all(scout.is_closed for scout in made)


async def test_a_server_that_has_a_leader_again_is_not_left() -> None:
    led: set[str] = {"b"}

    async def dial(url: str, _within_s: float) -> FakeScout:
        return FakeScout(lambda: b"led" if url in led else b"")

    scouts = Scouts(dial)
    assert await scouts.find(["b"], PROOF, here="a") == "b"
    led.add("a")
    assert await scouts.find(["b"], PROOF, here="a") == ""


async def test_scouts_that_reach_nobody_say_so() -> None:
    async def dial(_url: str, _within_s: float) -> FakeScout:
        message = "nobody there"
        raise BusConnectError(message)

    assert await Scouts(dial).find(["b", "c"], PROOF) is None


async def test_scouts_do_not_wait_for_a_server_that_hangs() -> None:
    async def dial(url: str, _within_s: float) -> FakeScout:
        if url == "hung":
            await asyncio.Event().wait()
        return FakeScout(lambda: b"led")

    assert await asyncio.wait_for(Scouts(dial).find(["hung", "b"], PROOF), 5.0) == "b"
