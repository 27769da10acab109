"""Coming in: who is refused and how fast, and where a password must not show."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from callboard.runtime.bus.base import Bus, StreamConfig
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.errors import BusAuthError, BusConnectError, ConfigError, TopologyError
from tests.support.cluster import Servers
from tests.support.eventually import eventually
from tests.support.server import NatsServer

SECRET = "hunter2"
LOGIN = f"authorization {{ user: me, password: {SECRET} }}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_without_a_server_the_deadline_holds_and_the_text_helps() -> None:
    port = _free_port()
    started = asyncio.get_running_loop().time()
    with pytest.raises(BusConnectError, match=rf"127\.0\.0\.1:{port}.*callboard up") as caught:
        await connect(f"nats://127.0.0.1:{port}", name="test", connect_deadline_s=0.5)
    assert caught.value.retryable
    assert 0.4 < asyncio.get_running_loop().time() - started < 2


async def test_a_server_that_comes_within_the_deadline_is_found(make_server: Callable[..., NatsServer]) -> None:
    server = make_server()
    server.port = _free_port()
    connecting = asyncio.create_task(connect(server.url, name="test", connect_deadline_s=10))
    await asyncio.sleep(0.2)
    await server.start()
    bus = await connecting
    assert bus.is_connected
    await bus.close()


async def test_a_connect_can_be_cancelled() -> None:
    connecting = asyncio.create_task(connect(f"nats://127.0.0.1:{_free_port()}", name="test"))
    await asyncio.sleep(0.1)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_a_wrong_password_is_told_at_once(make_server: Callable[..., NatsServer]) -> None:
    server = await make_server(more=LOGIN).start()
    attempts = [
        {"servers": server.url, "user": "me", "password": "wrong-one"},
        {"servers": server.url.replace("//", "//me:wrong-one@")},
        {"servers": server.url, "token": "wrong-one"},
        {"servers": server.url},
    ]
    for attempt in attempts:
        async with asyncio.timeout(2):
            with pytest.raises(BusAuthError) as caught:
                await connect(name="test", connect_deadline_s=30, **attempt)  # type: ignore[arg-type] # settings
        assert not caught.value.retryable
        assert "wrong-one" not in "".join(traceback.format_exception(caught.value))


async def test_a_password_shows_nowhere(make_server: Callable[..., NatsServer]) -> None:
    server = await make_server(more=LOGIN).start()
    told: list[object] = []
    url = server.url.replace("//", f"//me:{SECRET}@")
    bus = await connect(url, name="test", on_event=lambda event, fields: told.append((event, fields)))
    server.kill()
    await server.start()
    await bus.flush()
    client = bus._link._client  # type: ignore[attr-defined] # what a debugger or a crash report would print
    await bus.close()
    shown = [bus, bus.server, bus._link, vars(bus._link), client, vars(client), told]
    assert SECRET not in repr(shown)
    assert server.url in repr(bus)


async def test_the_client_alone_would_show_it(make_server: Callable[..., NatsServer]) -> None:
    """Negative control."""
    server = await make_server(more=LOGIN).start()
    client = await nats.connect(server.url.replace("//", f"//me:{SECRET}@"))
    await client.close()
    assert SECRET in repr(vars(client))


async def test_a_token_in_the_url_and_an_escaped_password_work(make_server: Callable[..., NatsServer]) -> None:
    tokens = await make_server(more="authorization { token: s3cret }").start()
    bus = await connect(tokens.url.replace("//", "//s3cret@"), name="test")
    await bus.close()
    odd = await make_server(more='authorization { user: me, password: "a/b@c" }').start()
    bus = await connect(odd.url.replace("//", "//me:a%2Fb%40c@"), name="test")
    await bus.close()


@pytest.mark.parametrize(
    "servers",
    ["", [], "http://127.0.0.1", "nats://", f"nats://me:{SECRET}@127.0.0.1:port", ["nats://a@x", "nats://b@y"]],
)
async def test_an_address_that_is_none_is_refused_without_showing_it(servers: str | list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        await connect(servers, name="test")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_a_server_without_jetstream_is_refused(make_server: Callable[..., NatsServer]) -> None:
    server = await make_server(jetstream=False).start()
    with pytest.raises(TopologyError, match="JetStream"):
        await connect(server.url, name="test")


async def test_a_cluster_that_is_choosing_its_leader_is_waited_for(tmp_path: Path) -> None:
    servers = Servers(tmp_path, count=3, more=lambda n: f'jetstream {{ store_dir: "{tmp_path / f"js{n}"}" }}')
    try:
        # the clients' ports are open before the cluster has a leader, and what it is asked until then is dropped
        await servers.start()
        bus = await connect(servers.url, name="test", connect_deadline_s=60)
        # a leader that was chosen a moment ago may not have heard of all three servers yet
        await eventually(lambda: _is_created(bus), within_s=30, every_s=0.2)
        await bus.close()
        for server in servers.all[:2]:
            server.kill()
        last = servers.all[2]
        # after some seconds it says that it has no leader, in place of saying nothing
        await eventually(lambda: _is_leaderless(last.url), within_s=30, every_s=0.2)
        with pytest.raises(BusConnectError, match=r"does not answer.*more than half.*connect_deadline_s") as caught:
            await connect(last.url, name="test", connect_deadline_s=5)
        assert caught.value.retryable
        connecting = asyncio.create_task(connect(last.url, name="test", connect_deadline_s=60))
        await asyncio.gather(*(server.start() for server in servers.all[:2]))
        bus = await connecting
        assert await bus.stream_info("A") is not None
        await bus.close()
    finally:
        servers.kill()


async def _is_created(bus: Bus) -> bool:
    try:
        await bus.create_stream(StreamConfig(name="A", subjects=("a",), replicas=3))
    except TopologyError as error:
        assert "no suitable peers" in str(error)  # noqa: PT017 - else it is what the test fails by
        return False
    return True


async def _is_leaderless(url: str) -> bool:
    client = await nats.connect(url)
    try:
        answer = await client.request("$JS.API.INFO", b"", timeout=0.2)
    except nats.errors.TimeoutError:
        return False
    finally:
        await client.close()
    return b"10008" in answer.data


async def test_a_server_that_is_too_old_is_refused(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.runtime.bus.jetstream_bus.MINIMUM_VERSION", (99, 0))
    with pytest.raises(TopologyError, match=r"99\.0 or newer"):
        await connect(nats_server.url, name="test")


async def test_several_servers_are_tried(nats_server: NatsServer) -> None:
    bus = await connect(f"nats://127.0.0.1:{_free_port()}, {nats_server.url}", name="test")
    assert bus.server.url == nats_server.url
    await bus.close()


async def test_no_password_goes_in_the_clear_where_tls_was_asked_for() -> None:
    """The client library would send it to a server that does not ask for TLS."""
    said: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"X","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        said.append(await reader.read(4096))
        writer.close()

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as listener:
        address = f"me:{SECRET}@127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        with pytest.raises(BusConnectError, match="secure connection required"):
            await connect(f"tls://{address}", name="test", connect_deadline_s=0.5)
        assert SECRET.encode() not in b"".join(said)
        # Negative control: this pretender does hear what is sent without TLS.
        with pytest.raises(BusConnectError):
            await connect(f"nats://{address}", name="test", connect_deadline_s=0.5)
        assert SECRET.encode() in b"".join(said)


async def test_tls_is_spoken_and_checked(make_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign,digitalSignature"]
    command += ["-addext", "subjectKeyIdentifier=hash", "-addext", "authorityKeyIdentifier=keyid"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)  # noqa: ASYNC221
    server = await make_server(more=LOGIN + f'\ntls {{ cert_file: "{cert}", key_file: "{key}" }}').start()
    bus = await connect(server.url.replace("nats:", "tls:"), name="test", tls_ca=str(cert), user="me", password=SECRET)
    await bus.create_stream(StreamConfig(name="A", subjects=("a",)))
    server.kill()
    await server.start()
    await bus.flush()
    await bus.close()
    with pytest.raises(BusAuthError, match=r"(?i)certificate"):
        await connect(server.url.replace("nats:", "tls:"), name="test", connect_deadline_s=0.5)
