"""Canaries are planted wherever a secret may stand, and everything Callboard says or stores is searched for them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import Struct

from callboard.runtime import logs
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus import jetstream, provision, topology
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.config import Settings, TopologySettings
from callboard.runtime.errors import CallboardError, RetryableError
from callboard.runtime.host import connector, run_worker
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.server import NatsServer

PASSWORD = "canary-password-41c7"
IN_URL = "canary-url-92ab"
IN_ENV = "sk-canaryenv4242aaaa"
IN_HEADER = "canary-header-77f0"
IN_ERROR = "canary-error-5e1d"
IN_ARGUMENT = "canary-argument-b00b"
ALL = (PASSWORD, IN_URL, IN_ENV, IN_HEADER, IN_ERROR, IN_ARGUMENT)
# What was submitted stands in the streams as it was: that is what they are for, and the docs say so.
STORED_AS_GIVEN = {IN_ARGUMENT}
TWICE = RetryPolicy(attempts=2, gaps_s=(0.05,))
USERS = f"""
authorization {{ users: [
  {{ user: worker, password: "{PASSWORD}" }}
  {{ user: other, password: "{IN_URL}" }}
] }}
"""


class Login(Struct):
    api_key: str


def angry(key: str) -> Exception:
    """Return what an HTTP library says of a refused request, with all that it quotes."""
    return RuntimeError(
        f"401 for https://user:{IN_ERROR}@api.example/v1: headers {{'Authorization': 'Bearer {IN_ERROR}'}}, "
        f'"api_key": "{key}", key {os.environ["PROVIDER_KEY"]}, password={IN_ERROR}'
    )


@capability("fetch", retry=TWICE)
async def fetch(login: Login) -> str:
    secret_in_frame = login.api_key
    raise angry(secret_in_frame)


@capability("later", retry=TWICE)
async def later(login: Login) -> str:
    message = f"try again with token={IN_ERROR}"
    raise RetryableError(message, after_s=0.05) from angry(login.api_key)


class Angry(Actor, name="angry"):
    class State(Struct):
        tries: int = 0

    @on
    async def login(self, message: Login) -> str:
        async def step() -> str:
            raise angry(message.api_key)

        return str(await self.step("reach", step))


@pytest_asyncio.fixture
async def server(make_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    monkeypatch.setenv("PROVIDER_KEY", IN_ENV)
    monkeypatch.setenv("CALLBOARD_NATS__USER", "worker")
    monkeypatch.setenv("CALLBOARD_NATS__PASSWORD", PASSWORD)
    running = await make_server(more=USERS).start()
    monkeypatch.setenv("CALLBOARD_NATS__URL", running.url)
    yield running


def found_in(text: str, *, but: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment] # never changed
    return [canary for canary in ALL if canary in text and canary not in but]


async def stored(bus: Bus) -> dict[str, str]:
    """Return every message of every stream as text, with its headers."""
    texts = {}
    for stream in await bus.stream_names():
        async for each in bus.read(stream):
            texts[f"{stream}/{each.subject}/{each.seq}"] = f"{each.headers} {each.data!r}"
    return texts


async def command(*args: str) -> str:
    def call() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "callboard", *args], capture_output=True, text=True, timeout=50, check=False
        )
        return f"{done.args}: {done.stdout}{done.stderr}"

    return await asyncio.to_thread(call)


async def misbehave(client: Client) -> list[str]:
    """Give work that fails with secrets in its mouth; return what its callers were told."""
    told = []
    headers = {"Authorization": f"Bearer {IN_HEADER}", "X-Api-Key": IN_HEADER}
    for name in ("fetch", "later"):
        with pytest.raises(CallboardError) as caught:
            await client.call(name, Login(IN_ARGUMENT), headers=headers, timeout_s=20)
        told.append(f"{caught.value!r} {caught.value}")
    with pytest.raises(CallboardError) as caught:
        await client.actor("angry/ann").ask(Login(IN_ARGUMENT), headers=headers, timeout_s=20)
    told.append(f"{caught.value!r} {caught.value}")
    return told


async def test_no_canary_sings(server: NatsServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="debug", form="json", file=tmp_path / "log.json")
    settings = Settings.load(flags={})
    watcher = await jetstream.connect(server.url.replace("//", f"//other:{IN_URL}@"), name="watcher")
    await provision.apply(watcher, await provision.plan(watcher, topology.declared(TopologySettings())))
    beats: list[Message] = []
    await watcher.subscribe("cb.beat.>", beats.append)
    ready: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_worker(settings, [fetch, later], actors=[Angry], on_ready=ready.set_result))
    worker = await ready
    bus = await connector(settings)("client")
    told = await misbehave(Client(bus))
    await eventually(lambda: len(beats) > 1)
    said = [
        *told,
        *(await asyncio.gather(*(command(*words.split()) for words in COMMANDS))),
        repr([bus, watcher, worker, settings, worker.options, bus.server]),
        str(settings.shown()),
    ]
    everything = await stored(watcher)
    worker.stop(now=True)
    await task
    with pytest.raises(CallboardError) as refused:
        await jetstream.connect(server.url.replace("//", f"//other:{PASSWORD}@"), name="x", connect_deadline_s=2)
    said.append(f"{refused.value!r} {refused.value}")
    await bus.close()
    await watcher.close()
    output = capfd.readouterr()
    said += [output.out, output.err, (tmp_path / "log.json").read_text("utf-8"), server.log()]
    said += [f"{beat.headers} {beat.data!r}" for beat in beats]
    assert not [(found_in(text), text[:2000]) for text in said if found_in(text)]
    records = {name: text for name, text in everything.items() if not name.startswith(UNTOUCHED)}
    assert any(name.startswith("CB_LEDGER/cb.attempt") for name in records)
    assert any(name.startswith("CB_DEAD/cb.dead.task") for name in records)
    assert any(name.startswith("CB_DEAD/cb.dead.mail") for name in records)
    leaks = {name: found_in(text, but=STORED_AS_GIVEN) for name, text in records.items()}
    assert not {name: (found, records[name][:1500]) for name, found in leaks.items() if found}
    # the control: the search sees what it looks for
    assert any(IN_ARGUMENT in text for text in records.values())
    assert any(IN_HEADER in text for text in everything.values())


# mail stands as it was sent, headers included, and so does its copy
UNTOUCHED = ("CB_ACTORS/cb.mbox.", "CB_AUDIT/cb.mbox.")
COMMANDS = (
    "config show --origin",
    "workers ls",
    "tasks ls",
    "dead ls",
    "agents ls",
    "doctor",
    "--debug --nats nats://127.0.0.1:1 tasks ls",
)
