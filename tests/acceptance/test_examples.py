"""The examples in other languages, run against a worker that knows nothing of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.console import Background, Console, Run, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
INSTALL_TIMEOUT_S = 50
WRITER = """
import asyncio
from collections.abc import AsyncIterator
from msgspec import Struct
from callboard import Actor, RetryPolicy, on

class Draft(Struct):
    words: list[str] = []

class Fail(Struct):
    text: str

class Hold(Struct):
    seconds: float

class Writer(Actor, name="writer", retry=RetryPolicy(attempts=1)):
    @on
    async def draft(self, m: Draft) -> AsyncIterator[str]:
        for word in m.words:
            yield word

    @on
    async def fail(self, m: Fail) -> None:
        raise ValueError(m.text)

    @on
    async def hold(self, m: Hold) -> str:
        await asyncio.sleep(m.seconds)
        return "held"
"""

# lists what answers to service discovery, with the client's own words for it
SERVICES = """
import { connect } from "nats";
const nc = await connect({ servers: process.env.NATS_URL });
const client = nc.services.client();
const found = [];
for await (const info of await client.info("callboard-worker")) found.push(info);
const stats = [];
for (const { id } of found) for await (const each of await client.stats("callboard-worker", id)) stats.push(each);
console.log(JSON.stringify({ found, stats }));
await nc.close();
"""

Ask = Callable[..., Run]


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("examples"))
    (found.folder / "hello.py").write_text((EXAMPLES / "hello.py").read_text())
    (found.folder / "writer.py").write_text(WRITER)
    dev = found.dev("hello.py", "writer.py")
    host, port = dev.events[0]["url"].removeprefix("nats://").split(":")
    found.env |= {"NATS_HOST": host, "NATS_PORT": port, "NATS_URL": f"{host}:{port}"}
    yield found
    found.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the Node examples and what they import."""
    folder = tmp_path_factory.mktemp("node")
    for file in (EXAMPLES / "node").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    install(folder)
    return folder


def install(folder: Path) -> None:
    """Have npm fetch what the folder's package names; skip the test when it cannot."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("Node.js is not on this machine")
    try:
        done = subprocess.run(
            [npm, "install", "--no-package-lock", "--no-audit", "--no-fund"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not finish: no way to its registry?")
    if done.returncode:
        pytest.skip(f"npm cannot install the client: {done.stderr[-200:]}")


@pytest.fixture
def agent(console: Console, node: Path) -> Iterator[Background]:
    """Start agent.mjs as ``counter/one``, which counts words, and wait until it is registered."""
    process = subprocess.Popen(
        ["node", str(node / "agent.mjs"), "counter/one", "count-words,idle-talk"],
        env=os.environ | console.env | {"LABELS": "zone=a", "WEIGHT": "2"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    found = Background(process)
    eventually(lambda: any("can count-words" in line for line in found.err) or process.poll() is not None, found.err)
    yield found
    found.stop()


def run(console: Console, *command: str, **env: str) -> Run:
    done = subprocess.run(
        command,
        cwd=console.folder,
        env=os.environ | console.env | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture(params=["bash", pytest.param("node", marks=pytest.mark.node)])
def ask(request: pytest.FixtureRequest, console: Console) -> Ask:
    """Return what asks in either language: ``ask(*flags, address, message, body, key=…, timeout=…)``."""
    if request.param == "bash":

        def by_bash(*words: str, key: str = "", timeout: int = 15) -> Run:
            options = [*(word for word in words if word.startswith("--")), "--timeout", str(timeout)]
            if key:
                options += ["--key", key]
            rest = [word for word in words if not word.startswith("--")]
            return run(console, str(EXAMPLES / "ask.sh"), *options, *rest)

        return by_bash
    folder: Path = request.getfixturevalue("node")

    def by_node(*words: str, key: str = "", timeout: int = 15) -> Run:
        return run(console, "node", str(folder / "ask.mjs"), *words, *([key] if key else []), WAIT=str(timeout))

    return by_node


def test_an_actor_is_asked_and_a_repeat_gets_the_same_answer(ask: Ask, request: pytest.FixtureRequest) -> None:
    actor = f"greeter/{request.node.callspec.id} a.b*c ü"
    first = ask(actor, "Ask", '{"text":"bob"}', key="one")
    assert (first.status, first.json) == (0, {"text": "hi bob", "turn": 1}), first.err
    assert ask(actor, "Ask", '{"text":"bob"}', key="one").json == first.json
    assert ask(actor, "Ask", '{"text":"bob"}').json["turn"] == 2


def test_an_actor_is_told_and_a_repeat_has_no_second_effect(
    ask: Ask, console: Console, request: pytest.FixtureRequest
) -> None:
    actor = f"greeter/told by {request.node.callspec.id}"
    first = ask("--tell", actor, "Ask", '{"text":"bob"}', key="one")
    assert (first.status, first.out.strip().isdecimal()) == (0, True), first.err
    assert ask("--tell", actor, "Ask", '{"text":"bob"}', key="one").out == first.out
    # behind it in the mailbox
    assert ask(actor, "Ask", '{"text":"eve"}').json == {"text": "hi eve", "turn": 2}


def test_parts_come_before_the_end(ask: Ask) -> None:
    found = ask("--stream", "writer/1", "Draft", '{"words":["a","b"]}')
    assert found.status == 0, found.err
    assert [json.loads(line) for line in found.out.splitlines()[:2]] == ["a", "b"]
    assert len(found.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["writer/2", "Fail", '{"text":"no ink"}'], 1, "no ink"),
        (["writer/2", "Unheard", "{}"], 1, "has no handler for"),
        (["nobody/2", "Fail", "{}"], 5, "no worker hosts nobody"),
        (["writer", "Fail", "{}"], 2, ""),
        (["Big Type/1", "Fail", "{}"], 2, ""),
    ],
)
def test_what_goes_wrong_has_a_status(
    ask: Ask, words: list[str], status: int, said: str, request: pytest.FixtureRequest
) -> None:
    # each language has a writer of its own: three dead letters in a row stop an actor
    address = words[0].replace("writer/2", f"writer/{request.node.callspec.id[:4]}")
    found = ask(address, *words[1:])
    assert found.status == status, found.err
    assert said in found.err
    assert found.out == ""


def test_a_late_answer_is_not_waited_for(ask: Ask) -> None:
    found = ask("writer/3", "Hold", '{"seconds":30}', timeout=1)
    assert found.status in (1, 6), found.err
    assert found.out == ""


def test_a_server_that_is_not_there_is_said(console: Console) -> None:
    found = run(console, str(EXAMPLES / "ask.sh"), "greeter/ann", "Ask", "{}", NATS_PORT="9")
    assert found.status == 3
    assert "no server" in found.err


def test_a_task_is_submitted_by_a_shell(console: Console) -> None:
    found = run(console, str(EXAMPLES / "publish.sh"), "--wait", "20", "shout", '"hey"', "shout/by hand")
    assert found.status == 0, found.err
    name, record = found.out.splitlines()
    assert (name, json.loads(record)["result"]) == ("shout/by hand", "HEY")


@pytest.mark.node
def test_a_task_is_submitted_by_node(console: Console, node: Path) -> None:
    found = run(console, "node", str(node / "submit.mjs"), "shout", '"hey"')
    assert (found.status, found.json) == (0, "HEY"), found.err


@pytest.mark.node
def test_an_agent_in_node_is_found_picked_and_asked(console: Console, agent: Background) -> None:
    members = {each["address"]: each for each in console.run("agents", "ls", "--json").json}
    one = members["counter/one"]
    assert (one["status"], one["is_hosted"], one["capabilities"]) == ("idle", False, ["count-words", "idle-talk"])
    assert (one["labels"], one["weight"]) == ({"zone": "a"}, 2)
    picked = console.run("find", "count-words", "--label", "zone=a", "--pick")
    assert (picked.status, picked.out) == (0, "counter/one\n"), picked.err
    asked = console.run("ask", "counter/one", "Text", '{"text":"one two three"}', "--json")
    assert asked.json["value"]["words"] == 3
    failed = console.run("ask", "counter/one", "Text", '{"text":3}')
    assert failed.status == 1
    assert 'takes a member "text"' in failed.err
    shown = console.run("agents", "show", "counter/one", "--json").json
    assert shown["registry"]["record"]["capabilities"][0]["name"] == "count-words"
    # and it leaves in good order
    assert agent.stop() == 0
    assert console.run("find", "count-words").status == 5
    assert "counter/one" not in console.run("agents", "ls").out


@pytest.mark.node
def test_an_agent_in_node_that_is_killed_goes_offline(console: Console, agent: Background) -> None:
    agent.stop(signal.SIGKILL)
    eventually(lambda: console.run("find", "count-words", "--status", "offline").status == 0, timeout_s=25)
    gone = console.run("find", "count-words")
    assert "nobody who offers 'count-words' is heard now; `callboard find count-words --status offline`" in gone.err
    assert console.run("find", "count-words", "--pick").status == 5


def test_the_registry_is_asked_by_a_shell(console: Console) -> None:
    script = str(EXAMPLES / "registry.sh")
    body = {"type": "scribe", "key": "by hand", "capabilities": ["scribble"], "instance": "bash"}
    assert run(console, script, "register", json.dumps(body)).json["address"] == "scribe/by hand"
    found = run(console, script, "find", '{"capability":"scribble"}')
    assert [agent["record"]["key"] for agent in found.json["agents"]] == ["by hand"]
    assert run(console, script, "address", '{"capability":"scribble"}').out == "scribe/by hand\n"
    near = run(console, script, "pick", '{"capability":"scribbel"}')
    assert (near.status, near.out) == (1, "")
    assert json.loads(near.err)["error"]["near"] == ["scribble"]
    assert run(console, script, "deregister", '{"type":"scribe","key":"by hand"}').json == {"ok": True}


@pytest.mark.node
def test_the_services_client_of_node_sees_the_workers(console: Console, node: Path) -> None:
    # the client that the examples use has no services client of its release; the one before it does
    folder = node / "services"
    folder.mkdir()
    (folder / "package.json").write_text('{"type":"module","private":true,"dependencies":{"nats":"^2.29"}}')
    (folder / "list.mjs").write_text(SERVICES)
    install(folder)
    found = run(console, "node", str(folder / "list.mjs"))
    assert found.status == 0, found.err
    (info,) = found.json["found"]
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert {"task-shout", "ask-greeter", "ask-writer"} <= {endpoint["name"] for endpoint in info["endpoints"]}
    assert [stats["id"] for stats in found.json["stats"]] == [info["id"]]
