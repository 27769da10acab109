"""A worker dies at every point of its tool calls: no unsafe tool runs twice, repeatable ones keep their key."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.actor.record import StateRecord, decode
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.client import Client
from callboard.runtime.config import ServerSettings, TopologySettings
from callboard.runtime.embedded import EmbeddedServer
from tests.chaos.tool_main import AGENT, Options, Said, Work
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]
LIVELY_S = 60.0
UNSAFE = frozenset({"send", "post"})
BY_HAND = "settled by hand"


class House:
    """A server, worker processes, and one agent's turn."""

    def __init__(self, url: str, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self.client = Client(bus)
        self.folder = folder
        self.asked = 0
        self._url = url
        self._workers: list[subprocess.Popen[bytes]] = []

    async def start(self, **how: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - fields of Options
        """Start a worker and wait until it serves or has died."""
        options = Options(url=self._url, folder=str(self.folder), **how)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CALLBOARD_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        with (self.folder / "workers.err").open("ab") as errors:
            worker = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
                [sys.executable, "-m", "tests.chaos.tool_main", msgspec.json.encode(options).decode()],
                cwd=ROOT,
                env=environment,
                stdout=errors,
                stderr=errors,
            )
        self._workers.append(worker)
        ready = self.folder / f"ready-{worker.pid}"
        await eventually(lambda: ready.exists() or worker.poll() is not None, within_s=LIVELY_S, what="a worker")
        return worker

    async def record(self) -> StateRecord:
        found = await self.bus.get_last(subjects.ACTORS, subjects.state(AGENT, "a"), from_leader=True)
        return decode(found.data) if found is not None else StateRecord()

    async def texts(self) -> list[str]:
        """Return what the turn came to, empty as long as it has not ended."""
        state = (await self.record()).state
        found: list[str] = msgspec.json.decode(state)["texts"] if isinstance(state, msgspec.Raw) else []
        return found

    async def finish(self, choice: str) -> list[str]:
        """Answer whatever a person is asked until the turn has ended; return what it came to."""
        answered: set[int] = set()

        async def ended() -> bool:
            record = await self.record()
            for parked in record.parked:
                if parked.waits not in answered:
                    answered.add(parked.waits)
                    await self.client.actor(f"{AGENT}/a").tell(Said(choice=choice, text=BY_HAND))
            return bool(await self.texts())

        await eventually(ended, within_s=LIVELY_S, what="the end of the turn", every_s=0.1)
        self.asked = len(answered)
        return await self.texts()

    def ran(self) -> dict[str, list[tuple[str, str]]]:
        """Return key and process of each run of each tool."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        file = self.folder / "ran"
        for line in file.read_text().splitlines() if file.exists() else []:
            # a key may hold spaces: it has the step's name in it
            rest, _, pid = line.rpartition(" ")
            name, _, key = rest.partition(" ")
            found[name].append((key, pid))
        return found

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[House]:
    settings = ServerSettings(data_dir=folder / "server", port=0, profile="fast", max_file_bytes=8 << 30)
    async with EmbeddedServer(settings) as server:
        bus = await connect(server.url, name="test")
        await apply(bus, await plan(bus, declared(TopologySettings())))
        house = House(server.url, bus, folder)
        try:
            yield house
        finally:
            house.end()
            await house.client.close()
            await bus.close()


def problems(house: House, calls: list[str]) -> list[str]:
    """Return what is wrong with the runs of the tools that a turn called."""
    found = []
    for name, runs in house.ran().items():
        wanted, keys = calls.count(name), [key for key, _ in runs]
        if len(set(keys)) > wanted:
            found.append(f"{name} ran under {len(set(keys))} keys for {wanted} calls")
        if name in UNSAFE and len(keys) > len(set(keys)):
            found.append(f"{name} is unsafe and ran twice under one key")
        if len(keys) > wanted + 1:
            found.append(f"{name} ran {len(keys)} times for {wanted} calls and one crash")
    return found


ROUNDS = [["send", "look"], ["send"]]
CALLS = ["send", "look", "send"]
WRITES = 6
# The rest run with `make test-all`.
OFTEN = {"1-after", "2-before", "end-send", "end-look"}
POINTS = [f"{n}-{when}" for n in range(1, WRITES + 1) for when in ("before", "after")]
POINTS += ["begin-send", "end-send", "begin-look", "end-look"]


async def one_death(house: House, point: str, choice: str, **how: Any) -> list[str]:  # noqa: ANN401 - fields of Options
    """Run the turn on a worker that dies at ``point`` and on its heir; return what it came to."""
    victim = await house.start(die_at=point, **how)
    await house.client.actor(f"{AGENT}/a").tell(Work(rounds=ROUNDS))
    await eventually(lambda: victim.poll() is not None, within_s=LIVELY_S, what=f"death at {point}")
    assert victim.returncode == -9
    await house.start(**how)
    return await house.finish(choice)


@pytest.mark.parametrize("point", [p if p in OFTEN else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
async def test_no_unsafe_tool_runs_twice(tmp_path: Path, point: str) -> None:
    async with opened(tmp_path) as house:
        texts = await one_death(house, point, "done")
        ran = house.ran()
        print(f"{point}: asked {house.asked}, runs { {name: len(runs) for name, runs in ran.items()} }")  # noqa: T201 - the account
        assert problems(house, CALLS) == []
        # each call came to an end: the tool's own, or a person's
        assert [text in (f"{name} ran", BY_HAND) for name, text in zip(CALLS, texts, strict=True)] == [True] * 3
        assert house.asked == texts.count(BY_HAND) <= 1
        # nothing is settled by hand that ran to its recorded end, and a tool that never began is not left out
        assert len(ran["send"]) + house.asked >= 2


async def test_a_person_may_have_it_run_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        texts = await one_death(house, "begin-send", "again")
        assert texts == ["send ran", "look ran", "send ran"]
        assert (house.asked, len(house.ran()["send"])) == (1, 2)


async def test_without_the_announcement_it_would_run_twice(tmp_path: Path) -> None:
    """The control: the same death, and the tool says of itself that it may be repeated."""
    async with opened(tmp_path) as house:
        await one_death(house, "end-send", "done", is_unsafe_repeated=True)
        assert problems(house, CALLS) == ["send is unsafe and ran twice under one key"]
        assert house.asked == 0


@pytest.mark.parametrize(
    ("point", "asked", "runs"),
    [
        ("end-post", 1, {"post": 1, "fetch": 1}),
        ("end-fetch", 0, {"post": 1, "fetch": 2}),
        pytest.param("begin-post", 1, {"fetch": 1}, marks=pytest.mark.slow),
        pytest.param("begin-fetch", 0, {"post": 1, "fetch": 1}, marks=pytest.mark.slow),
    ],
)
async def test_a_pool_s_worker_dies_in_mid_tool(tmp_path: Path, point: str, asked: int, runs: dict[str, int]) -> None:
    async with opened(tmp_path) as house:
        await house.start()
        victim = await house.start(die_at=point, has_agent=False, has_pool=True)
        rounds = [["post", "look"], ["fetch"]] if "post" in point else [["fetch", "look"], ["post"]]
        await house.client.actor(f"{AGENT}/a").tell(Work(rounds=rounds))
        await eventually(lambda: victim.poll() is not None, within_s=LIVELY_S, what=f"death at {point}")
        await house.start(has_agent=False, has_pool=True)
        texts = await house.finish("done")
        found = house.ran()
        assert problems(house, ["post", "look", "fetch"]) == []
        assert {name: len(each) for name, each in found.items() if name != "look"} == runs
        assert house.asked == asked == texts.count(BY_HAND)


@pytest.mark.parametrize("point", ["1-after", pytest.param("2-after", marks=pytest.mark.slow), "3-after"])
async def test_an_agent_s_worker_dies_while_its_pool_works(tmp_path: Path, point: str) -> None:
    """The task goes on, and the heir takes its result: nobody is asked."""
    async with opened(tmp_path) as house:
        await house.start(has_agent=False, has_pool=True)
        victim = await house.start(die_at=point)
        await house.client.actor(f"{AGENT}/a").tell(Work(rounds=[["post"], ["fetch"]]))
        await eventually(lambda: victim.poll() is not None, within_s=LIVELY_S, what=f"death at {point}")
        await house.start()
        assert await house.finish("done") == ["post ran", "fetch ran"]
        assert {name: len(each) for name, each in house.ran().items()} == {"post": 1, "fetch": 1}
        assert house.asked == 0
