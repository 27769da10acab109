"""A whole deployment on the written configuration, every part a process with the settings of its own user."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.errors import PermissionDeniedError
from callboard.runtime.host import connector
from callboard.runtime.security.folder import Folder
from tests.acceptance.console import Background, Console, Run, eventually
from tests.support.secured import Secured, free_ports

# every process takes seconds to start on a busy machine, and there are many
pytestmark = pytest.mark.timeout(400)
soon = partial(eventually, timeout_s=90)

GPU = """
from callboard import capability

@capability("search")
async def search(text: str) -> str:
    return text.upper()
"""
LAB = """
from callboard import capability

@capability("embed")
async def embed(text: str) -> int:
    return len(text)
"""
DESK = """
from msgspec import Struct
from callboard import Actor, on

class Ask(Struct):
    text: str

class Greeter(Actor, name="greeter", capabilities=["greet"]):
    class State(Struct):
        turns: int = 0

    @on
    async def hello(self, m: Ask) -> str:
        self.state.turns += 1
        return f"hi {m.text} {self.state.turns}"
"""
NODE = {"type": "node", "key": "n1", "capabilities": ["count"], "instance": "one"}


class Deployment:
    """The servers, and the command line as each of their users."""

    def __init__(self, folder: Path) -> None:
        self.console = Console(folder)
        self.files = Folder(folder / "nats")
        self.servers = Secured(self.files)
        self.group = ""
        self.leader: Background
        self.standby: Background
        self.gpu: Background
        self.lab: Background
        self.host: Background

    def begin(self) -> None:
        for name, text in (("gpu.py", GPU), ("lab.py", LAB), ("desk.py", DESK)):
            (self.console.folder / name).write_text(text)
        port, cluster, http = (str(each) for each in free_ports(3))
        ports = ("--port", port, "--cluster-port", cluster, "--http-port", http)
        pools = ("--pool", "gpu=search", "--pool", "lab=embed,embed--zone_a")
        users = (*pools, "--host", "desk=greeter/greet", "--agent", "node=node")
        made = self.console.run("nats", "config", "--tls", "--out", "nats", *ports, *users)
        assert made.status == 0, made.err
        asyncio.run(self.servers.start())
        # an account has as much room as the disk, of which this test needs little
        limits = {f"CALLBOARD_TOPOLOGY__{name}_MAX_BYTES": "64MiB" for name in ("QUEUE", "LEDGER", "AUDIT", "DEAD")}
        named = [word for name in ("search", "embed", "embed--zone_a", "greet") for word in ("--capability", name)]
        made = self.run("operator", "provision", *named, **limits)
        assert made.status == 0, made.err
        self.leader = self.start("registry", "--registry")
        self.host = self.start("host-desk", "desk.py")
        self.gpu = self.start("worker-gpu", "gpu.py", "--processes", "2", count=2)
        self.lab = self.start("worker-lab", "lab.py", "--labels", "zone=a", "--max", "2", count=0)
        self.standby = self.start("registry", "--registry")

    def run(self, user: str, *args: str, **env: str) -> Run:
        return self.console.run("--config", str(self.files.settings_file("callboard", user)), *args, **env)

    def start(self, user: str, *args: str, count: int = 1) -> Background:
        config = str(self.files.settings_file("callboard", user))
        found = self.console.start("--config", config, "worker", "start", *args, "--json")
        soon(lambda: len(found.events) >= count or found.process.poll() is not None, found.err)
        assert found.process.poll() is None, "".join(found.err)
        return found

    def json(self, user: str, *args: str) -> Any:  # noqa: ANN401 - whatever it wrote
        done = self.run(user, *args, "--json")
        assert done.status == 0, f"{user} {args}: {done.err}"
        return done.json

    def refusals(self) -> list[str]:
        """What the server has refused to anybody, but for what a test tries on purpose."""
        said = self.servers.log().splitlines()
        wanted = ("cb.registry.register.greeter", "history.cb.result.search")
        return [line for line in said if "Violation" in line and not any(each in line for each in wanted)]

    def close(self) -> None:
        self.console.close()
        asyncio.run(self.servers.close())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    found = Deployment(tmp_path_factory.mktemp("secured"))
    try:
        found.begin()
        yield found
    finally:
        found.close()


def addresses(found: Any) -> list[str]:  # noqa: ANN401 - JSON
    return [f"{view['record']['type']}/{view['record']['key']}" for view in found["agents"]]


def test_work_of_all_kinds_is_done(fleet: Deployment) -> None:
    assert fleet.run("submitter", "submit", "search", '"abc"', "--wait").out.strip() == "ABC"
    # nobody serves it yet: the parent sees the task, and starts a process that bears the label
    done = fleet.run("submitter", "submit", "embed", '"four"', "--labels", "zone=a", "--wait", "--timeout", "90s")
    assert (done.status, done.out.strip()) == (0, "4"), done.err
    done = fleet.run("submitter", "ask", "greeter/ann", "Ask", '{"text": "bob"}')
    # nothing beside the answer, above all no warning of a library's
    assert (done.status, "hi bob 1" in done.out, done.err) == (0, True, "")
    assert not fleet.refusals()


def test_hosted_agents_are_entered_found_and_picked(fleet: Deployment) -> None:
    fleet.run("submitter", "ask", "greeter/bea", "Ask", '{"text": "x"}')
    soon(lambda: "greeter/bea" in addresses(fleet.json("submitter", "find", "greet")))
    found = fleet.json("submitter", "find", "greet", "--pick")
    assert found["agent"]["worker"] == fleet.host.events[0]["worker"]
    for user in ("operator", "auditor"):
        listed = {each["address"]: each for each in fleet.json(user, "agents", "ls")}
        assert listed["greeter/bea"]["is_registered"], user
    assert not fleet.refusals()


def test_look_ups_outlive_the_process_that_leads_the_registry(fleet: Deployment) -> None:
    fleet.run("submitter", "ask", "greeter/cy", "Ask", '{"text": "x"}')
    fleet.leader.send(signal.SIGKILL)
    fleet.leader.wait()
    soon(lambda: "greeter/cy" in addresses(fleet.json("submitter", "find", "greet")))
    standby = fleet.standby.events[0]["worker"]
    soon(lambda: any(f"{standby} leads" in each["text"] for each in _registry_findings(fleet)))


def _registry_findings(fleet: Deployment) -> list[Any]:
    found = fleet.run("operator", "doctor", "--deep", "--json").json
    return [each for each in found["findings"] if each["check"] == "registry"]


def test_the_operator_sees_and_orders_workers_and_groups(fleet: Deployment) -> None:
    listed = fleet.json("operator", "workers", "ls")
    names = {each["worker"] for each in listed["workers"]}
    assert {fleet.host.events[0]["worker"], *(each["worker"] for each in fleet.gpu.events)} <= names
    assert {fleet.gpu.group, fleet.lab.group} <= {each["group"] for each in listed["groups"]}
    assert fleet.gpu.group.startswith("worker-gpu.")
    assert fleet.json("operator", "workers", "show", fleet.host.events[0]["worker"])["status"] == "ready"
    assert fleet.json("operator", "workers", "scale", fleet.gpu.group, "3")["processes"] == 3
    soon(lambda: len(fleet.gpu.events) >= 3)
    one = fleet.gpu.events[-1]["worker"]
    assert fleet.json("operator", "workers", "scale", one, "3", "--slots", "search")["workers"] == [one]
    assert fleet.json("operator", "workers", "scale", fleet.lab.group, "--max", "3")["max"] == 3
    top = fleet.json("operator", "top", "--once")
    assert {"search", "embed"} <= {pool["capability"] for pool in top["pools"]}
    second = fleet.start("host-desk", "desk.py")
    worker = second.events[0]["worker"]
    assert fleet.json("operator", "workers", "drain", worker, "--wait") == {"drained": [worker]}
    assert second.wait() == 0
    assert not fleet.refusals()


def test_the_thorough_doctor_finds_nothing_wrong(fleet: Deployment) -> None:
    found = fleet.run("operator", "doctor", "--deep", "--json").json
    wrong = [each for each in found["findings"] if each["level"] == "problem"]
    assert not wrong
    assert not fleet.refusals()


def test_history_is_read_and_sent_again(fleet: Deployment) -> None:
    done = fleet.run("submitter", "ask", "greeter/dan", "Ask", '{"text": "x"}')
    assert done.status == 0, done.err
    assert fleet.run("submitter", "submit", "search", '"abc"', "--wait").status == 0
    for user in ("auditor", "operator"):
        soon(partial(_is_replayed, fleet, user))
        assert fleet.run(user, "audit", "tail", "--json").lines
        assert fleet.run(user, "log", "--agent", "greeter/dan", "--json").status == 0
    done = fleet.run("operator", "replay", "to", "history.{subject}", "--subject", "cb.result.search.*", "--json")
    assert done.status == 0, done.err
    # who may read it all may not send it on: the server drops each message, and says so to nobody who does not listen
    done = fleet.run("auditor", "replay", "to", "history.{subject}", "--subject", "cb.result.search.*")
    assert (done.status, "permissions refuse publish on 'history.cb.result.search." in done.err) == (3, True), done.err
    assert not fleet.refusals()


def _is_replayed(fleet: Deployment, user: str) -> bool:
    return fleet.run(user, "replay", "agent", "greeter/dan", "--json").status == 0


def test_an_agent_in_another_language_registers_for_its_type_only(fleet: Deployment) -> None:
    asyncio.run(_as_agent(fleet))
    assert not fleet.refusals()


async def _as_agent(fleet: Deployment) -> None:
    bus = await connector(fleet.servers.settings("agent-node"))("agent")
    try:
        await _serve_as_agent(fleet, bus)
    finally:
        await bus.close()


async def _serve_as_agent(fleet: Deployment, bus: Bus) -> None:
    def answer(message: Message) -> None:
        answers.append(asyncio.ensure_future(bus.publish(message.reply, b"7")))

    answers: list[asyncio.Future[None]] = []
    await bus.subscribe("cb.ask.node.*", answer)
    registered = await _asked(bus, "cb.registry.register.node", NODE)
    assert registered["beat"] == "cb.registry.beat.node"
    alive = {"type": "node", "key": "n1", "instance": "one"}
    assert await _asked(bus, registered["beat"], alive) == {"ok": True}
    forged = await _asked(bus, "cb.registry.register.node", NODE | {"type": "greeter"})
    assert forged["error"]["code"] == "input"
    with pytest.raises(PermissionDeniedError):
        await bus.request("cb.registry.register.greeter", json.dumps(NODE | {"type": "greeter"}).encode())
    beating = asyncio.create_task(_beat(bus, registered["beat"], alive))
    found = await asyncio.to_thread(fleet.json, "submitter", "find", "count")
    assert addresses(found) == ["node/n1"]
    done = await asyncio.to_thread(fleet.run, "submitter", "ask", "node/n1", "Count", "{}")
    assert (done.status, done.out.strip()) == (0, "7"), done.err
    beating.cancel()
    assert await _asked(bus, "cb.registry.deregister.node", alive) == {"ok": True}


async def _beat(bus: Bus, subject: str, body: object) -> None:
    while True:
        await bus.publish(subject, json.dumps(body).encode())
        await asyncio.sleep(1)


async def _asked(bus: Bus, subject: str, body: object) -> Any:  # noqa: ANN401 - JSON
    return json.loads((await bus.request(subject, json.dumps(body).encode())).data)


def test_deaths_are_noticed_and_what_was_held_goes_on(fleet: Deployment) -> None:
    """A worker's name has its user before a dot: pings and death notices must find it all the same."""
    second = fleet.start("host-desk", "desk.py")
    with suppress(ProcessLookupError):
        os.kill(fleet.host.events[0]["pid"], signal.SIGKILL)
    fleet.host.wait()
    done = fleet.run("submitter", "ask", "greeter/ann", "Ask", '{"text": "eve"}')
    assert (done.status, "hi eve" in done.out) == (0, True), done.err
    fleet.host = second
    assert not fleet.refusals()
