"""Whatever is sent, handled, copied late and swept: nothing goes that is needed, and in the end all else is gone."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import archive
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.trim import Trimmer, TrimReport
from callboard.runtime.bus.base import Stored
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings
from callboard.runtime.testing import FakeClock
from tests.support.past import Past

pytestmark = pytest.mark.property

KEYS = ("ann", "bob", "cid.of/x")
RETENTION_S = 3600.0
SETTLE_S = 180.0
Break = Literal["", "pending", "settle", "audit"]


class Scene:
    """One partition, its sweeper, and a source that can be stopped."""

    def __init__(self, broker: MemoryBroker, clock: FakeClock, broken: Break) -> None:
        self.clock = clock
        self.bus = broker.connect()
        self.past = Past(self.bus, clock)
        self.copied_at: dict[int, datetime] = {}
        self.problems: list[str] = []
        self.swept = 0
        self._broker = broker
        self._broken = broken
        self._cursor = Cursor()
        self._stored: dict[int, Stored] = {}
        self._trimmer = Trimmer(
            self.bus,
            clock=clock,
            retention_s=RETENTION_S,
            audit=broken != "audit",
            settle_s=0.0 if broken == "settle" else SETTLE_S,
        )

    async def act(self, action: str) -> None:
        """Do one thing of a plan: ``send ann``, ``handle ann``, ``save``, ``trim``, ``wait 60``, ``stop``, ``go``."""
        word, _, rest = action.partition(" ")
        match word:
            case "send":
                await self.past.send(rest)
            case "handle":
                await self.past.handle(rest)
            case "save":
                self._cursor = self.past.cursor()
            case "wait":
                await self._look()
                await self.clock.advance(float(rest))
            case "stop":
                await self._look()
                self._broker.stream("CB_ACTORS").copiers.clear()
            case "go":
                self._copy()
            case "trim":
                await self.trim()
        await self._look()

    async def trim(self) -> TrimReport:
        """Sweep once, and see whether anything went that was needed."""
        await self._look()
        cursor = self._cursor
        if self._broken == "pending":
            cursor = replace(cursor, pending={})
        report = await self._trimmer.trim("greeter", 0, cursor=cursor, dirty=self.past.taken())
        self.swept += report.mails + report.versions
        await self._check()
        return report

    async def standing(self) -> set[int]:
        """Return the sequences that ``CB_ACTORS`` holds."""
        return {stored.seq async for stored in self.bus.read("CB_ACTORS", subjects=subjects.AUDITED)}

    def _copy(self) -> None:
        actors, audit = self._broker.stream("CB_ACTORS"), self._broker.stream("CB_AUDIT")
        audit.copy_from(actors)
        if audit not in actors.copiers:
            actors.copiers.append(audit)

    async def _look(self) -> None:
        """Note what is stored, and since when it is copied."""
        async for stored in self.bus.read("CB_ACTORS", subjects=subjects.AUDITED):
            self._stored[stored.seq] = stored
        async for copy in self.bus.read("CB_AUDIT"):
            self.copied_at.setdefault(archive.original(copy).seq, self.clock.now())

    async def _check(self) -> None:
        standing = await self.standing()
        now = self.clock.now()
        unhandled = {seq for seqs in self.past.pending.values() for seq in seqs}
        latest = {versions[-1].seq for versions in self.past.versions.values()}
        for seq, stored in list(self._stored.items()):
            if seq in standing or stored.subject.startswith("cb.step."):
                continue
            copied = self.copied_at.get(seq)
            if seq in unhandled:
                self.problems.append(f"{seq}: unhandled mail is gone")
            if seq in latest:
                self.problems.append(f"{seq}: a latest state is gone")
            if copied is None or now - copied < timedelta(seconds=SETTLE_S):
                self.problems.append(f"{seq}: its copy was not on disk")
            if stored.subject.startswith("cb.mbox.") and now - stored.time < timedelta(seconds=RETENTION_S):
                self.problems.append(f"{seq}: mail went too early")
            del self._stored[seq]


async def play(actions: list[str], *, broken: Break = "", to_end: bool = True) -> Scene:
    clock = FakeClock()
    broker = MemoryBroker(clock)
    scene = Scene(broker, clock, broken)
    try:
        await apply(scene.bus, await plan(scene.bus, declared(TopologySettings(partitions=1))))
        for action in actions:
            await scene.act(action)
        if to_end:
            for action in ["go", *(f"handle {key}" for key in KEYS for _ in actions), "save"]:
                await scene.act(action)
            for _ in range(6):
                await scene.act("trim")
                await scene.act(f"wait {RETENTION_S / 2}")
            left = await scene.standing()
            wanted = {versions[-1].seq for versions in scene.past.versions.values()}
            kept = {seq for seq in left - wanted if not scene._stored[seq].subject.startswith("cb.step.")}
            scene.problems += [f"{seq}: still there in the end" for seq in sorted(kept)]
    finally:
        await scene.bus.close()
    return scene


_keys = st.sampled_from(KEYS)
_actions = st.lists(
    st.one_of(
        _keys.map("send {}".format),
        _keys.map("handle {}".format),
        st.sampled_from([1, 30, 100, 200, 1000, 4000]).map("wait {}".format),
        st.sampled_from(["save", "trim", "trim", "stop", "go"]),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(actions=_actions)
def test_nothing_needed_goes_and_all_else_does(actions: list[str]) -> None:
    assert asyncio.run(play(actions)).problems == []


WAITING = ["send ann", "send bob", "handle bob", "save", "trim", "wait 4000", "trim", "trim"]
HASTY = ["send ann", "handle ann", "send ann", "handle ann", "trim", "wait 10", "trim", "trim"]
UNCOPIED = ["send ann", "stop", "handle ann", "send ann", "handle ann", "save", "trim", "wait 4000", "trim"]


@pytest.mark.parametrize(
    ("actions", "broken", "problem"),
    [
        (WAITING, "pending", "unhandled mail is gone"),
        (HASTY, "settle", "its copy was not on disk"),
        (UNCOPIED, "audit", "its copy was not on disk"),
    ],
)
def test_the_checker_sees_a_sweeper_that_ignores_a_rule(actions: list[str], broken: Break, problem: str) -> None:
    """Negative control, and the same plan with the rule kept."""
    found = asyncio.run(play(actions, broken=broken, to_end=False))
    assert any(problem in each for each in found.problems), found.problems
    assert asyncio.run(play(actions)).problems == []


def test_mail_of_others_goes_while_one_actor_waits_for_ever() -> None:
    scene = asyncio.run(play(WAITING, to_end=False))
    assert (scene.problems, scene.swept) == ([], 1)
