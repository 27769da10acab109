"""Tenants on running servers: isolated, limited, cut off at once, and gone when removed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from msgspec.structs import replace

from callboard.cli.main import cli
from callboard.cli.session import Session
from callboard.runtime import tenants
from callboard.runtime.bus.base import Bus, Message, StreamConfig, Write
from callboard.runtime.bus.topology import due_consumer, task_consumers
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.config import Settings, WorkSettings
from callboard.runtime.errors import (
    BackpressureError,
    BusAuthError,
    CallboardError,
    ConfigError,
    NotFoundError,
    QuotaExceededError,
    TopologyError,
)
from callboard.runtime.host import connector
from callboard.runtime.security import tenancy
from callboard.runtime.security.plan import MAIN, Tenant
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.secured import Secured, planned, secured

SMALL = Tenant(name="acme", max_bytes=64 << 20, max_streams=13, max_connections=3)


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Secured]:
    async with secured(tmp_path / "nats", planned(has_tls=False)) as running:
        yield running


async def create(servers: Secured, tenant: Tenant) -> None:
    assert await tenancy.create(servers.folder, tenant, connector=connector)


async def command(servers: Secured, *args: str) -> Result:
    """Run the command line as a person would, in a thread because it has a loop of its own."""

    def call() -> Result:
        return CliRunner().invoke(cli, ["tenant", *args, "--out", str(servers.folder.path)], obj=Session())

    return await asyncio.to_thread(call)


async def test_creating_twice_gives_one_tenant_with_its_streams(servers: Secured) -> None:
    for limit in ("64MiB", "96MiB"):
        done = await command(servers, "create", "acme", "--max-bytes", limit, "--json")
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["is_new"] is False
    assert [(each.name, each.max_bytes) for each in servers.folder.plan().tenants] == [("acme", 96 << 20)]
    operator = await servers.bus("operator", account="acme")
    names = await operator.stream_names()
    assert {"CB_WORK", "CB_LEDGER", "CB_ACTORS", "KV_CB_REGISTRY"} <= set(names)
    listed = await command(servers, "ls", "--json")
    assert [each["name"] for each in json.loads(listed.stdout)] == ["acme"]


async def test_accounts_hear_and_see_nothing_of_each_other(servers: Secured) -> None:
    await create(servers, SMALL)
    await create(servers, replace(SMALL, name="beta"))
    acme, beta = [await servers.bus("operator", account=account) for account in ("acme", "beta")]
    main = await servers.bus("operator")
    heard: list[Message] = []
    await beta.subscribe("cb.>", heard.append)
    await main.subscribe("cb.>", heard.append)
    submitter = await servers.bus("submitter", account="acme")
    await submitter.store(Write("cb.task.search", b"1"))
    await acme.publish("cb.ctl.cancel", b"1")
    await acme.flush()
    info = await acme.stream_info("CB_WORK")
    assert info is not None
    assert info.messages == 1
    for other in (beta, main):
        await other.publish("cb.ctl.cancel", b"own")
        await eventually(lambda: len(heard) >= 1)
        info = await other.stream_info("CB_WORK")
        assert info is not None
        assert info.messages == 0
    await eventually(lambda: len(heard) == 2)
    assert {message.data for message in heard} == {b"own"}


# The client drops the stream of each refused attempt without closing it; its socket is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_suspended_tenant_is_cut_at_once_and_comes_back_with_what_it_had(servers: Secured) -> None:
    await create(servers, SMALL)
    bus = await servers.bus("submitter", account="acme")
    mine = await servers.bus("submitter")
    await bus.store(Write("cb.task.search", b"1"))
    assert (await command(servers, "suspend", "acme")).exit_code == 0
    await eventually(lambda: not bus.is_connected, within_s=2)
    with pytest.raises(CallboardError):
        await servers.bus("submitter", account="acme", nats__connect_deadline_s=1.0)
    # nobody else notices
    assert mine.is_connected
    assert json.loads((await command(servers, "ls", "--json")).stdout)[0]["is_suspended"] is True
    assert (await command(servers, "resume", "acme")).exit_code == 0
    await eventually(lambda: bus.is_connected, within_s=15)
    operator = await servers.bus("operator", account="acme")
    info = await operator.stream_info("CB_WORK")
    assert info is not None
    assert info.messages == 1


async def test_what_goes_beyond_a_limit_is_refused_by_name(servers: Secured) -> None:
    await create(servers, SMALL)
    operator = await servers.bus("operator", account="acme")
    with pytest.raises(QuotaExceededError, match="streams") as caught:
        await _streams(operator, 4)
    assert caught.value.code == "quota_exceeded"
    with pytest.raises(QuotaExceededError):
        await operator.create_stream(StreamConfig(name="BIG", subjects=("big",), max_bytes=1 << 30))


async def test_a_tenant_that_is_full_is_refused_and_goes_on_when_it_has_room(servers: Secured) -> None:
    await create(servers, SMALL)
    submitter = await servers.bus("submitter", account="acme")
    with pytest.raises(BackpressureError):
        await _fill(submitter, "cb.task.search")
    # a stream without a limit of its own meets the account's
    with pytest.raises(QuotaExceededError, match="the account is at its limit"):
        await _fill(submitter, "cb.tell.greeter.ann")
    await (await servers.bus("submitter")).store(Write("cb.task.search", b"1"))
    operator = await servers.bus("operator", account="acme")
    await operator.purge("CB_WORK")
    await submitter.store(Write("cb.task.search", b"1"))


async def test_connections_beyond_the_limit_are_refused(servers: Secured) -> None:
    await create(servers, SMALL)
    for _ in range(SMALL.max_connections):
        await servers.bus("submitter", account="acme")
    with pytest.raises(BusAuthError, match=r"no further connection in .* --max-connections"):
        await servers.bus("submitter", account="acme", nats__connect_deadline_s=1.0)


async def test_a_tenant_keeps_its_limits_when_new_ones_cannot_be(servers: Secured) -> None:
    await create(servers, SMALL)
    submitter = await servers.bus("submitter", account="acme")
    await submitter.store(Write("cb.task.search", b"x" * 900_000))
    done = await command(servers, "create", "acme", "--max-bytes", "4MiB")
    assert isinstance(done.exception, TopologyError)
    assert "tenant acme keeps the limits that it had" in str(done.exception)
    assert servers.folder.plan().tenant("acme") == SMALL
    await eventually(lambda: submitter.is_connected)
    await submitter.store(Write("cb.task.search", b"x" * 900_000))


async def test_a_removed_tenant_leaves_nothing(servers: Secured) -> None:
    await create(servers, SMALL)
    assert (await command(servers, "rm", "acme", "--yes")).exit_code == 0
    assert not (servers.folder.path / "users/acme").exists()
    assert "acme" not in (servers.folder.path / "accounts.conf").read_text("utf-8")
    with pytest.raises(NotFoundError):
        servers.folder.plan().tenant("acme")
    await create(servers, SMALL)
    operator = await servers.bus("operator", account="acme")
    info = await operator.stream_info("CB_WORK")
    assert info is not None
    assert info.messages == 0
    assert (servers.folder.path / "users" / MAIN).exists()


async def _streams(bus: Bus, count: int) -> None:
    for number in range(count):
        await bus.create_stream(StreamConfig(name=f"OWN{number}", subjects=(f"own.{number}",)))


async def _fill(bus: Bus, subject: str) -> None:
    for _ in range(100):
        await bus.store(Write(subject, b"x" * 1_000_000))


@capability("search")
async def search(tenant: str) -> str:
    await asyncio.sleep(0.005)
    return tenant.upper()


# As above: the worker of a suspended tenant is refused again and again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_one_process_works_for_all_tenants_and_outlasts_a_suspended_one(servers: Secured) -> None:
    for name in ("acme", "beta"):
        await create(servers, replace(SMALL, name=name, max_connections=10))
        bus = await servers.bus("operator", account=name)
        for config in task_consumers("search", WorkSettings()):
            await bus.create_consumer("CB_WORK", config)
        await bus.create_consumer("CB_LATER", due_consumer("search", WorkSettings()))
    served = tenants.read(servers.folder.path / "users/worker-default.tenants.json")
    ready: list[Worker] = []
    settings = Settings.load(file=[], env={}, flags={"worker.concurrency": 4})
    task = asyncio.create_task(tenants.run_tenants(settings, served, [search], on_ready=ready.append))
    try:
        await eventually(lambda: len(ready) == 2)
        clients = {name: Client(await servers.bus("submitter", account=name)) for name in ("acme", "beta")}
        for name, client in clients.items():
            assert await client.call("search", name, timeout_s=10) == name.upper()
        assert {worker.pools["search"].slots for worker in ready} <= {1, 2, 3}
        await tenancy.suspend(servers.folder, "acme")
        assert await clients["beta"].call("search", "beta", timeout_s=10) == "BETA"
        names = [each.name for each in tenants.read(servers.folder.path / "users/worker-default.tenants.json")]
        assert names == ["beta"]
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be used"),
        ("[]", "at least one"),
        ('[{"name":"a","config":"x"},{"name":"a","config":"y"}]', "each once"),
        ('[{"name":"a","config":"x","weight":0}]', "at least 1"),
        ('[{"name":"a","config":"x","wait":1}]', "cannot be used"),
    ],
)
def test_a_list_of_tenants_that_makes_no_sense_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words):
        tenants.read(tmp_path / "list.json")
