"""The life of a run: its host dies, it is cancelled with all its agents, it is tried again, it is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar, cast

import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.agents import runs
from callboard.agents.branch import Branch
from callboard.agents.flow import flow
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_record import RunResult
from callboard.agents.run_view import RunView
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.capability import capability
from callboard.runtime.errors import DeadlineError, InputError, InvalidNameError, NoHostError, NotFoundError
from callboard.runtime.worker_options import WorkerOptions
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

REGISTERED = WorkerOptions(
    ack_wait_s=QUICK.ack_wait_s,
    extend_every_s=QUICK.extend_every_s,
    holds_wait_s=QUICK.holds_wait_s,
    drain_grace_s=QUICK.drain_grace_s,
    hosts_registry=True,
)


class Job(Struct):
    text: str


class Worker(Actor, name="toiler", capabilities=["toil"]):
    """Says when it begins and ends; what it is told to fail at, it fails at."""

    begun: ClassVar[Counter[str]] = Counter()
    ended: ClassVar[Counter[str]] = Counter()
    bad: ClassVar[set[str]] = set()
    held: ClassVar[set[str]] = set()
    go: ClassVar[asyncio.Event]
    told: ClassVar[list[tuple[str, Any]]] = []

    @on
    async def work(self, m: Task) -> AgentResult:
        Worker.begun[self.key] += 1
        Worker.told.append((self.key, (m, self.deadline, self.mail.headers.get("traceparent"))))
        if self.key in Worker.held:
            try:
                await Worker.go.wait()
            except asyncio.CancelledError:
                Worker.ended[self.key] += 1
                raise
        if self.key in Worker.bad:
            return AgentResult(status="failed", reason="no good")
        return AgentResult(status="done", text=f"{self.key} {m.text}", turns=1)


@flow
async def three(run: Run, job: Job) -> list[str]:
    """Three agents, one after the other, and code of its own between them."""
    first = await run.agent("toiler/1", job.text)
    length = await run.step("measure", len, first.text)
    second = await run.agent("toiler/2", f"{first.text} {length}")
    third = await run.agent("toiler/3", second.text)
    return [first.text, second.text, third.text]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    for each in (Worker.begun, Worker.ended, Worker.bad, Worker.held, Worker.told):
        each.clear()
    Worker.go = asyncio.Event()


async def ask(world: World, address: str, job: object, **headers: str) -> RunResult:
    return await ActorRef(world.bus, address).ask(
        job, timeout_s=25, idempotency_key="it", returns=RunResult, headers=headers
    )


async def ended(world: World, run: str) -> RunView:
    found = await runs.wait(world.bus, run, timeout_s=20)
    assert found is not None, f"{run} has not ended"
    return found


async def test_another_host_finishes_the_run(callboard_world: World) -> None:
    world = callboard_world
    Worker.held = {"2"}
    _ = await world.start(Worker)
    first = await world.start(three)
    asked = asyncio.create_task(ask(world, "run-three/1", Job("dig")))
    await eventually(lambda: Worker.begun["2"] == 1, within_s=10, what="the second agent begins")
    await first.kill()
    _ = await world.start(three)
    Worker.go.set()
    found = await asked
    assert found.output == ["1 dig", "2 1 dig 5", "3 2 1 dig 5"]
    assert Worker.begun == {"1": 1, "2": 1, "3": 1}


async def test_a_run_that_is_cancelled_ends_its_agents_and_its_tasks(callboard_world: World) -> None:
    world = callboard_world
    Worker.held = {"a", "b"}
    stopped = asyncio.Event()
    begun = asyncio.Event()

    @capability("grind")
    async def grind(text: str) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return text

    @flow
    async def inner(run: Run, job: Task) -> str:
        return (await run.agent("toiler/b", job.text)).text

    @flow
    async def outer(run: Run, job: Job) -> list[str]:
        found = await run.parallel(["toiler/a", "run-inner/x", "grind"], job.text)
        return list(found.results)

    _ = await world.start(Worker, inner, outer, grind, options=REGISTERED)
    name = await runs.start(world.client, "outer", Job("dig"), id="1")
    assert name == "outer/1"
    await eventually(lambda: set(Worker.begun) == {"a", "b"}, within_s=15, what="the agents begin")
    await asyncio.wait_for(begun.wait(), 10)
    assert (await runs.show(world.bus, name)).status == "running"
    await runs.cancel(world.client, name, reason="enough")
    view = await ended(world, name)
    assert (view.status, view.error) == ("cancelled", "enough")
    await eventually(lambda: set(Worker.ended) == {"a", "b"}, within_s=15, what="the agents end")
    await asyncio.wait_for(stopped.wait(), 15)
    assert (await ended(world, "inner/x")).status == "cancelled"
    assert (await runs.show(world.bus, "inner/x")).parent == "outer/1"
    with pytest.raises(InputError, match="has ended, cancelled"):
        await runs.cancel(world.client, name)


async def test_a_retried_run_asks_only_what_it_has_no_result_of(callboard_world: World) -> None:
    world = callboard_world
    Worker.bad = {"3"}
    _ = await world.start(Worker, three)
    name = await runs.start(world.client, three, Job("dig"))
    view = await ended(world, name)
    assert (view.status, view.code, view.attempt) == ("failed", "agent_failed", 1)
    assert "no good" in view.error
    assert [(part.name, part.status) for part in view.agents] == [
        ("toiler", "done"),
        ("toiler-2", "done"),
        ("toiler-3", "failed"),
    ]
    Worker.bad.clear()
    assert await runs.retry(world.client, name) == 2
    await eventually(lambda: Worker.begun["3"] == 2, within_s=10, what="the third agent is asked again")
    view = await ended(world, name)
    assert (view.status, view.attempt, view.output) == ("done", 2, ["1 dig", "2 1 dig 5", "3 2 1 dig 5"])
    assert Worker.begun == {"1": 1, "2": 1, "3": 2}
    with pytest.raises(InputError, match="is done: start a new run"):
        await runs.retry(world.client, name)


@flow
async def skilled(run: Run, job: Job) -> str:
    """Whoever can."""
    return (await run.agent("toil", job.text)).text


async def test_a_second_agent_with_the_same_capability_takes_over(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Worker, skilled, options=REGISTERED)
    # agents register by their first turn
    for key in ("x", "y"):
        _ = await ActorRef(world.bus, f"toiler/{key}").ask(Task("hello"), timeout_s=10)

    async def both() -> bool:
        return len((await world.client.find("toil")).agents) == 2

    await eventually(both, within_s=10, what="both agents are known")
    Worker.begun.clear()
    Worker.bad = {"x"}
    for number in range(4):
        found = await ask(world, f"run-skilled/{number}", Job("dig"))
        assert (found.status, found.output) == ("done", "y dig")
    assert Worker.begun["x"] >= 1, "the one that fails was never picked: the test shows nothing"
    Worker.bad = {"x", "y"}
    found = await ask(world, "run-skilled/bad", Job("dig"))
    assert found.status == "failed"
    assert "toiler/x" in found.error
    assert "toiler/y" in found.error


async def test_agents_inherit_trace_deadline_and_budgets(callboard_world: World) -> None:
    world = callboard_world

    @flow
    async def inner(run: Run, job: Task) -> str:
        return (await run.agent("toiler/deep", job.text)).text

    @flow
    async def outer(run: Run, job: Task) -> str:
        return (await run.agent("run-inner/i", job)).text

    _ = await world.start(Worker, inner, outer)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    task = Task("dig", budgets=("tenant/acme",))
    found = await ask(world, "run-outer/o", task, traceparent=trace)
    assert found.output == "deep dig"
    [(_, (told, deadline, traced))] = Worker.told
    assert (told.run, told.agent_run) == ("inner/i", "toiler")
    assert told.budgets == ("run/inner/i", "run/outer/o", "tenant/acme")
    assert traced is not None
    assert traced.split("-")[1] == trace.split("-")[1]
    assert deadline is not None
    view = await runs.show(world.bus, "outer/o")
    assert view.deadline is not None
    assert deadline <= view.deadline


@flow(patience_s=0.3)
async def hopeful(run: Run, job: Job) -> str:
    """Asks whom nobody has ever heard of, and can do without."""
    found = await run.agent(Branch(job.text, "dig", is_optional=True))
    return found.status


async def test_whoever_is_optional_may_be_missing(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(hopeful, options=REGISTERED)
    found = await ask(world, "run-hopeful/1", Job("nobody"))
    assert (found.status, found.output, found.missing) == ("partial", "failed", ["nobody"])
    found = await ask(world, "run-hopeful/2", Job("ghost/1"))
    assert (found.status, found.missing) == ("partial", ["ghost"])
    listed = {line.run: line.status for line in await runs.ls(world.bus)}
    assert listed == {"hopeful/1": "partial", "hopeful/2": "partial"}


async def test_what_cannot_be_a_run_is_refused_in_words(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Worker, three)
    with pytest.raises(NoHostError, match="no worker has ever hosted a flow 'four': there are three"):
        _ = await runs.start(world.client, "four", Job("dig"))
    with pytest.raises(DeadlineError):
        _ = await runs.start(world.client, "three", Job("dig"), deadline=world.clock.now())
    with pytest.raises(InvalidNameError, match="names no run"):
        _ = await runs.show(world.bus, "three")
    with pytest.raises(NotFoundError, match="there is no run three/none"):
        _ = await runs.show(world.bus, "three/none")
    for wrong in (b'{"no": 1}', b'{"text": 1}', b"{"):
        with pytest.raises(InputError, match=r"nothing was started.*(text|truncated)"):
            _ = await runs.start(world.client, "three", wrong, id="bad")
    assert await runs.ls(world.bus) == []
    # whoever writes the mail itself, or starts it before a host is there
    _ = await world.client.actor("run-three/bad").tell(b'{"no": 1}', id="start")
    view = await ended(world, "three/bad")
    assert (view.status, view.code) == ("failed", "decode")
    assert "text" in view.error


async def test_the_same_run_is_started_once(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Worker, three)
    for _ in range(2):
        assert await runs.start(world.client, three, Job("dig"), id="same") == "three/same"
    view = await ended(world, "three/same")
    assert view.status == "done"
    # and whoever asks for it gets what it came to
    assert (await ask(world, "run-three/same", Job("dig"))).output == view.output
    assert Worker.begun == {"1": 1, "2": 1, "3": 1}


async def test_what_changes_is_seen_until_the_end(callboard_world: World) -> None:
    world = callboard_world
    Worker.held = {"2"}
    _ = await world.start(Worker, three)
    name = await runs.start(world.client, three, Job("dig"))
    seen: list[tuple[str, list[str]]] = []
    async for view in runs.changes(world.bus, name):
        seen.append((view.status, [part.status for part in view.agents]))
        if ("running", ["done", "running"]) in seen:
            Worker.go.set()
    assert seen[-1] == ("done", ["done", "done", "done"])


async def test_a_host_that_drains_hands_the_run_on(callboard_world: World) -> None:
    world = callboard_world
    Worker.held = {"2"}
    _ = await world.start(Worker)
    first = await world.start(three, options=replace(QUICK, drain_grace_s=0.5))
    asked = asyncio.create_task(ask(world, "run-three/1", Job("dig")))
    await eventually(lambda: Worker.begun["2"] == 1, within_s=10, what="the second agent begins")
    _ = await world.start(three)
    await first.stop()
    Worker.go.set()
    assert (await asked).output == ["1 dig", "2 1 dig 5", "3 2 1 dig 5"]
    assert Worker.begun == {"1": 1, "2": 1, "3": 1}


class Go(Struct):
    word: str


@flow
async def patient(run: Run, job: Job) -> str:
    """Waits for a word between two agents."""
    first = await run.agent("toiler/1", job.text)
    if job.text == "beside":

        async def within() -> str:
            return str((await run.wait_for(Go)).word)

        await run.parallel([within, "toiler/2"], job.text)
    word: Go = await run.wait_for(Go)
    return (await run.agent("toiler/2", f"{first.text} {word.word}")).text


async def test_a_run_waits_for_a_person_and_holds_nothing(callboard_world: World) -> None:
    world = callboard_world
    host = await world.start(Worker, patient)
    name = await runs.start(world.client, patient, Job("dig"), id="1")

    async def waits() -> bool:
        view = await runs.show(world.bus, name)
        return view.status == "waiting" and view.waits_for == ["Go"]

    await eventually(waits, within_s=10, what="the run waits")
    assert [line.status for line in await runs.ls(world.bus)] == ["waiting"]
    await host.stop()
    _ = await world.start(Worker, patient)
    _ = await world.client.actor("run-patient/1").tell(Go("on"))
    view = await ended(world, name)
    assert (view.status, view.output) == ("done", "2 1 dig on")
    assert Worker.begun == {"1": 1, "2": 1}


async def test_a_run_that_waits_is_cancelled(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Worker, patient)
    name = await runs.start(world.client, patient, Job("dig"), id="1")

    async def waits() -> bool:
        return (await runs.show(world.bus, name)).status == "waiting"

    await eventually(waits, within_s=10, what="the run waits")
    await runs.cancel(world.client, name, reason="enough")
    assert (await ended(world, name)).status == "cancelled"
    assert [line.status for line in await runs.ls(world.bus)] == ["cancelled"]


async def test_nobody_waits_in_a_branch(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Worker, patient)
    found = await ask(world, "run-patient/b", Job("beside"))
    assert (found.status, found.code) == ("failed", "input")
    assert "move it before or behind it" in found.error


class Busy(Actor, name="busy"):
    """Answers anybody at once."""

    calls: ClassVar[Counter[str]] = Counter()

    @on
    async def work(self, m: Task) -> AgentResult:
        Busy.calls[m.text] += 1
        return AgentResult(status="done", text=m.text)


async def test_an_answer_that_is_not_kept_any_more_is_asked_for_again(callboard_world: World) -> None:
    world = callboard_world
    Busy.calls.clear()
    held = asyncio.Event()

    class Deaf:
        """A bus that hears no answer to an ask."""

        def __init__(self, bus: Bus) -> None:
            self._bus = bus

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the bus has
            return getattr(self._bus, name)

        async def request(self, subject: str, data: bytes = b"", **more: Any) -> Message:  # noqa: ANN401 - the bus's own
            answer: Message = await self._bus.request(subject, data, **more)
            if subject.startswith("cb.call.busy."):
                await held.wait()
            return answer

    @flow
    async def asks(run: Run, job: Job) -> str:
        return (await run.agent("busy/b", job.text)).text

    _ = await world.start(Busy)
    deaf = await world.start(asks, wrap=lambda bus: cast("Bus", Deaf(bus)))
    asked = asyncio.create_task(ask(world, "run-asks/1", Job("mine")))
    await eventually(lambda: Busy.calls["mine"] == 1, within_s=10, what="the agent answers")
    for number in range(20):
        key = f"other-{number}"
        _ = await ActorRef(world.bus, "busy/b").ask(Task(key), timeout_s=10, idempotency_key=key)
    await deaf.kill()
    _ = await world.start(asks)
    assert (await asked).output == "mine"
    assert Busy.calls["mine"] == 2
