"""The servers' files: taken by the server itself, three started from them; a leaf node, users, the chart's values."""

from __future__ import annotations

import asyncio
import copy
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from callboard.cli.k8s_pod import USER_FOLDER, Login
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.client import Client
from callboard.runtime.config import Settings, TopologySettings
from callboard.runtime.errors import BusError, PermissionDeniedError
from callboard.runtime.host import connector
from callboard.runtime.security import plan as plans
from callboard.runtime.security.folder import Folder
from callboard.runtime.security.serverconf import problems
from tests.deploy import conf
from tests.support.broker import hands
from tests.support.eventually import eventually
from tests.support.mesh import free_ports
from tests.support.server import NatsServer

SMALL = TopologySettings(
    queue_max_bytes=1 << 26, ledger_max_bytes=1 << 26, audit_max_bytes=1 << 26, dead_max_bytes=1 << 26
)


@pytest.mark.parametrize("name", conf.PLAIN)
def test_the_server_takes_a_file_as_it_stands(name: str) -> None:
    assert conf.check(conf.NATS / f"{name}.conf") == ""


def test_every_file_is_tested() -> None:
    assert {path.stem for path in conf.NATS.glob("*.conf")} == {*conf.PLAIN, "limits", "secured"}


def test_the_check_notices_a_broken_file(tmp_path: Path) -> None:
    shutil.copy(conf.NATS / "limits.conf", tmp_path)
    text = (conf.NATS / "single.conf").read_text("utf-8").replace("max_file: 8GB", "max_fil: 8GB")
    (tmp_path / "single.conf").write_text(text, "utf-8")
    assert "max_fil" in conf.check(tmp_path / "single.conf")


@pytest.mark.parametrize("name", ["single", "secured", "hub", "leaf", "cluster-1"])
def test_a_file_syncs_every_write_and_shows_nothing_to_strangers(name: str) -> None:
    text = (conf.NATS / f"{name}.conf").read_text("utf-8")
    if "jetstream {" in text:
        assert "sync_interval: always" in text
    said = problems(text)
    assert [each for each in said if "in the clear" not in each] == []
    # the plain cluster says so itself
    assert bool(said) == name.startswith("cluster")


def _server(folder: Path, name: str, **addresses: str) -> NatsServer:
    """Return a server that runs on a file of ``deploy/nats``; ``addresses`` are named by what they replace."""
    folder.mkdir(parents=True)
    shutil.copy(conf.NATS / "limits.conf", folder)
    text = conf.here((conf.NATS / f"{name}.conf").read_text("utf-8"), folder, addresses=addresses)
    return NatsServer(folder, jetstream=False, more=text)


@asynccontextmanager
async def _running(*servers: NatsServer) -> AsyncIterator[None]:
    await asyncio.gather(*(server.start() for server in servers))
    try:
        yield
    finally:
        for server in servers:
            server.stop()


async def _joined(url: str) -> Bus:
    found: list[Bus] = []

    async def is_there() -> bool:
        try:
            bus: Bus = await jetstream.connect(url, name="test")
        except BusError:
            return False
        found.append(bus)
        return True

    await eventually(is_there, within_s=30, every_s=0.1, what="a server lets us in")
    return found[0]


async def _provisioned(bus: Bus, settings: TopologySettings) -> None:
    wanted = declared(settings, capabilities=("hello",))

    async def is_done() -> bool:
        try:
            await apply(bus, await plan(bus, wanted))
        except BusError:
            return False
        return not (await plan(bus, wanted)).changes

    await eventually(is_done, within_s=60, every_s=0.2, what="everything is provisioned")


async def test_a_single_server_holds_all_streams(tmp_path: Path) -> None:
    server = _server(tmp_path / "cb-1", "single")
    async with _running(server):
        bus = await _joined(server.url)
        try:
            await _provisioned(bus, SMALL)
        finally:
            await bus.close()


async def test_three_servers_started_from_the_files_hold_three_copies(tmp_path: Path) -> None:
    ports = list(free_ports(3))
    routes = {f"nats://cb-{n}:6222": f"nats://127.0.0.1:{ports[n - 1]}" for n in (1, 2, 3)}
    servers = [
        _server(tmp_path / f"cb-{n}", f"cluster-{n}", **{"0.0.0.0:6222": f"127.0.0.1:{ports[n - 1]}"}, **routes)
        for n in (1, 2, 3)
    ]
    async with _running(*servers):
        bus = await _joined(",".join(server.url for server in servers))
        try:
            await _provisioned(bus, SMALL.model_copy(update={"replicas": 3}))
            info = await bus.stream_info("CB_WORK")
            assert info is not None
            assert info.config.replicas == 3
            assert info.leader in {"cb-1", "cb-2", "cb-3"}
        finally:
            await bus.close()


async def test_workers_at_a_leaf_node_use_the_streams_of_the_hub(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    hub = _server(tmp_path / "hub", "hub", **{"127.0.0.1:7422": f"127.0.0.1:{port}"})
    leaf = _server(tmp_path / "leaf", "leaf", **{"127.0.0.1:7422": f"127.0.0.1:{port}"})
    async with _running(hub, leaf):
        near, far = await _joined(hub.url), await _joined(leaf.url)
        try:
            await _provisioned(near, SMALL)
            await Client(near).submit("hello", "far away")
            taken = await hands(far, stream="CB_WORK", consumer="hello-normal", credit=1)
            await taken.have(1, within_s=20)
            assert taken.bodies == [b'"far away"']
            await far.ack(taken.tokens, confirm=True)
            await eventually(lambda: _is_empty(near, "CB_WORK"), within_s=10, what="the hub has taken the ack")
            await taken.pull.close()
        finally:
            await near.close()
            await far.close()


async def _is_empty(bus: Bus, stream: str) -> bool:
    info = await bus.stream_info(stream)
    return info is not None and info.messages == 0


@pytest.fixture
def secured(tmp_path: Path) -> Folder:
    """Give a folder of ``callboard nats config --tls`` for three servers of a cluster on Kubernetes."""
    hosts = tuple(f"nats-{number}.nats-headless.callboard.svc.cluster.local" for number in range(3))
    servers = plans.layout(3, hosts=hosts, port=4222, cluster_port=6222, http_port=8222)
    folder = Folder(tmp_path / "nats")
    folder.write(
        plans.Plan(
            servers=servers,
            has_tls=True,
            pools=(plans.unit("default=hello", role="worker"), plans.unit("batch=batch", role="worker")),
            hosts=(plans.unit("agents", role="host"),),
        )
    )
    return folder


def test_the_secured_file_takes_what_callboard_writes(secured: Folder, tmp_path: Path) -> None:
    for name in ("secured.conf", "limits.conf"):
        shutil.copy(conf.NATS / name, secured.path / name)
    # the server looks for certificates where it was started
    text = (secured.path / "secured.conf").read_text("utf-8").replace('"tls/', f'"{secured.path}/tls/')
    (secured.path / "secured.conf").write_text(text, "utf-8")
    assert conf.check(secured.path / "secured.conf") == ""
    (secured.path / "accounts.conf").unlink()
    assert conf.check(secured.path / "secured.conf") != ""


def _chart(secured: Folder, folder: Path, values: dict[str, Any]) -> Path:
    """Write the file that the chart makes of values."""
    text = conf.chart_pod(secured, folder, conf.chart_config(values))
    path = folder / "etc/nats-config/nats.conf"
    path.write_text(text.replace("$SERVER_NAME", "nats-0"), "utf-8")
    return path


def test_the_server_takes_what_the_chart_makes_of_our_values(secured: Folder, tmp_path: Path) -> None:
    path = _chart(secured, tmp_path / "pod", conf.values())
    assert conf.check(path) == ""
    text = path.read_text("utf-8")
    assert '"sync_interval": "always"' in text
    assert "include ../nats-accounts/accounts.conf;" in text


def test_the_server_refuses_values_that_are_misspelled(secured: Folder, tmp_path: Path) -> None:
    broken = copy.deepcopy(conf.values())
    broken["config"]["jetstream"]["merge"]["sync_intervall"] = "always"
    assert "sync_intervall" in conf.check(_chart(secured, tmp_path / "pod", broken))


def test_a_limit_of_the_store_is_below_its_volume() -> None:
    store = conf.values()["config"]["jetstream"]["fileStore"]
    assert int(store["maxSize"].removesuffix("Gi")) <= 0.9 * int(store["pvc"]["size"].removesuffix("Gi"))


async def test_a_pool_gets_in_with_its_secret_and_does_only_what_it_may(tmp_path: Path) -> None:
    local = Folder(tmp_path / "nats")
    servers = plans.layout(1, hosts=("127.0.0.1",), port=4222, cluster_port=6222, http_port=8222)
    local.write(plans.Plan(servers=servers, has_tls=True, pools=(plans.unit("default=hello", role="worker"),)))
    config = conf.chart_config(conf.values())
    alone = {key: value for key, value in config.items() if key not in {"cluster", "port", "http_port"}}
    alone["jetstream"]["max_file_store"] = "<< 4GB >>"
    alone["server_name"] = "nats-0"
    text = conf.chart_pod(local, tmp_path / "pod", alone).strip().removeprefix("{").removesuffix("}")
    server = NatsServer(tmp_path / "pod/etc/nats-config", jetstream=False, more=text)
    async with _running(server):
        operator = await _login(local, server, "operator", tmp_path)
        await _provisioned(operator, SMALL)
        await operator.close()
        worker = await _login(local, server, "worker-default", tmp_path)
        try:
            assert await worker.consumer_info("CB_WORK", "hello-normal") is not None
            with pytest.raises(PermissionDeniedError):
                await worker.delete_stream("CB_WORK")
        finally:
            await worker.close()


async def _login(folder: Folder, server: NatsServer, user: str, place: Path) -> Bus:
    """Connect as a pod does: by its variables, and the files of its Secret."""
    mounted = place / user
    mounted.mkdir()
    for key, data in conf.secret_files(folder, f"callboard-{user}").items():
        (mounted / key).write_bytes(data)
        (mounted / key).chmod(0o440)
    login = Login(user=user, is_worker=user.startswith("worker"), is_guest=user.startswith("worker"))
    env = {each["name"]: each["value"].replace(USER_FOLDER, str(mounted)) for each in login.variables()}
    url = server.url.replace("nats://", "tls://")
    return await connector(Settings.load(env=env | {"CALLBOARD_NATS__URL": url}))("test")
