"""Every call of a model is on record, also that of a worker that was killed in the middle of the answer."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec

from callboard.agents.budget import find_budgets
from callboard.agents.cost import CostReport, cost_report
from callboard.agents.llm import watch
from callboard.agents.llm.history import read_calls
from callboard.agents.llm.record import ModelCall, ModelInput
from callboard.agents.llm.scope import BudgetView, SetBudget
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.client import Client
from callboard.runtime.config import TopologySettings
from tests.support.eventually import eventually
from tests.support.provider import Provider, Say
from tests.support.server import NatsServer
from tests.support.think_host import Think

RUN = "night"


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    server = NatsServer(folder)
    await server.start()
    try:
        bus = await jetstream.connect(server.url, name="test")
        try:
            await apply(bus, await plan(bus, declared(TopologySettings())))
            yield server, bus
        finally:
            await bus.close()
    finally:
        server.stop()


@asynccontextmanager
async def host(server: NatsServer, provider: Provider) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.think_host",
        server.url,
        provider.url,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_kill_in_the_middle_of_an_answer_leaves_every_call_on_record(tmp_path: Path) -> None:
    script = [
        Say(text="one and two and three and four", when="second", times=1, pace_s=0.4, usage=(40, 9)),
        Say(text="the second answer", when="second", usage=(40, 6)),
        Say(text="the first answer", when="first", usage=(30, 5, 10)),
        Say(text="the third answer", when="third", usage=(50, 7)),
    ]
    lines = tmp_path / "calls"
    async with served(tmp_path / "nats") as (server, bus), Provider(script, calls_file=lines) as provider:
        client = Client(bus)
        async with host(server, provider) as first, host(server, provider) as second:
            await client.actor(f"budget/run/{RUN}").ask(SetBudget(usd=Decimal(2000), parent="tenant/acme"))
            asked = asyncio.create_task(
                client.actor("thinker/a").ask(Think(["first", "second", "third"], RUN), timeout_s=50)
            )
            await kill_the_owner(bus, first, second)
            answers = await asked
            assert answers == ["the first answer", "the second answer", "the third answer"]

            found = await settled(bus)
            # one line a call: three that were answered, and the one that was cut off
            assert len(lines.read_bytes().splitlines()) == 4
            assert (found.total.calls, found.total.unfinished, found.total.failed) == (3, 1, 0)
            assert found.total.requests == 4
            answered = [(30, 5), (40, 6), (50, 7)]
            assert found.total.input_tokens == sum(one for one, _ in answered)
            assert found.total.output_tokens == sum(two for _, two in answered)
            assert found.total.usd == sum(Decimal(one + 2 * two) for one, two in answered)
            await check_records(bus)
            await check_tokens(bus)
            await check_budgets(bus, found)


async def kill_the_owner(bus: Bus, *hosts: asyncio.subprocess.Process) -> None:
    """Kill the process that runs the turn while its second answer comes."""
    async for chunk in watch.read_chunks(bus, RUN):
        if chunk.text.startswith("one"):
            break
    owners = await bus.get_many("CB_ACTORS", ["cb.step.thinker.>"])
    (owner,) = {msgspec.json.decode(stored.data)["worker"] for stored in owners}
    (process,) = [each for each in hosts if f"-{each.pid}-" in owner]
    process.kill()


async def settled(bus: Bus) -> CostReport:
    """Return the report when the last record was written."""
    found: list[CostReport] = []

    async def all_there() -> bool:
        found[:] = [await cost_report(bus, "model")]
        return found[0].total.calls == 3

    await eventually(all_there)
    return found[0]


async def check_records(bus: Bus) -> None:
    records = [each async for each in read_calls(bus)]
    (again,) = [each for each in records if isinstance(each, ModelCall) and each.attempt == 2]
    begun = [each for each in records if isinstance(each, ModelInput) and each.step == again.step]
    assert sorted(each.attempt for each in begun) == [1, 2]
    assert again.completion.text == "the second answer"
    by_agent = await cost_report(bus, "agent")
    assert [row.name for row in by_agent.rows] == ["thinker"]
    assert (await cost_report(bus, "run", run="another")).rows == []


async def check_tokens(bus: Bus) -> None:
    transcript = watch.Transcript()
    attempts = set()
    async for chunk in watch.read_chunks(bus, RUN, follow=False):
        attempts.add((chunk.step, chunk.attempt))
        transcript.add(chunk)
    assert len(attempts) == 4
    assert sorted(transcript.texts.values()) == ["the first answer", "the second answer", "the third answer"]


async def check_budgets(bus: Bus, found: CostReport) -> None:
    views: dict[str, BudgetView] = {}

    async def all_at_rest() -> bool:
        # what was spent goes from a scope to the one above it by mail
        views.update({each.scope: each for each in await find_budgets(bus)})
        return all(each.running == 0 for each in views.values())

    await eventually(all_at_rest)
    for scope in (f"run/{RUN}", "tenant/acme"):
        view = views[scope]
        assert (view.calls, view.interrupted, view.running) == (4, 1, 0), scope
        # the interrupted call is charged with its prompt
        assert view.spent.usd is not None
        assert found.total.usd < view.spent.usd < found.total.usd + 50
