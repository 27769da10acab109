"""TLS both ways: who is not trusted is told why, and certificates change under a running server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from callboard.runtime.bus import jetstream
from callboard.runtime.errors import BusAuthError, BusConnectError, PayloadTooLargeError
from callboard.runtime.security import servers as security_servers
from callboard.runtime.security.folder import Folder
from tests.support.eventually import eventually
from tests.support.secured import Secured, planned

HOSTS = ("127.0.0.1", "localhost")


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Secured]:
    folder = Folder(tmp_path / "mine")
    folder.write(planned())
    running = await Secured(folder).start()
    try:
        yield running
    finally:
        await running.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "other")
    folder.write(planned())
    return folder


async def enter(servers: Secured, **flags: Path | str) -> None:
    given: dict[str, Any] = {"nats__connect_deadline_s": 5.0, **flags}
    await servers.bus("operator", **given)


async def test_a_foreign_key_is_refused(servers: Secured, stranger: Folder) -> None:
    await enter(servers)
    with pytest.raises(BusAuthError, match="nkey"):
        await enter(servers, nats__nkey_seed_file=stranger.path / "users/callboard/operator/seed")


async def test_who_comes_without_credentials_or_with_a_password_is_refused(servers: Secured) -> None:
    folder, tls = servers.folder, servers.folder.path / "tls"
    for who in ({}, {"user": "operator", "password": "guess"}, {"token": "guess"}):
        with pytest.raises(BusAuthError):
            await jetstream.connect(
                folder.plan().url,
                name="x",
                connect_deadline_s=5,
                tls_ca=str(tls / "ca.pem"),
                tls_cert=str(tls / "callboard.operator.pem"),
                tls_key=str(tls / "callboard.operator.key"),
                **who,  # type: ignore[arg-type] # texts
            )


async def test_an_unknown_authority_is_named_on_either_side(servers: Secured, stranger: Folder) -> None:
    tls = stranger.path / "tls"
    with pytest.raises(BusAuthError, match="tls_ca_file"):
        await enter(servers, nats__tls_ca_file=tls / "ca.pem")
    with pytest.raises(BusAuthError, match="tls_cert_file"):
        await enter(
            servers,
            nats__tls_cert_file=tls / "callboard.operator.pem",
            nats__tls_key_file=tls / "callboard.operator.key",
        )


async def test_an_expired_certificate_of_ours_is_named(servers: Secured) -> None:
    certificate, key = servers.folder.authority.issue("late", days=-1)
    with pytest.raises(BusAuthError, match=r"our certificate has expired: renew nats\.tls_cert_file"):
        await enter(servers, nats__tls_cert_file=certificate, nats__tls_key_file=key)


async def test_the_servers_certificate_is_read_again_and_an_expired_one_refused(servers: Secured) -> None:
    folder = servers.folder
    bus = await servers.bus("operator")
    folder.authority.issue("cb-1", hosts=HOSTS, days=-1, rotate=True)
    assert [each.is_running for each in await security_servers.reload(folder)] == [True]
    with pytest.raises(BusAuthError, match="its certificate has expired: renew it"):
        await enter(servers)
    # what is connected stays
    assert await bus.stream_names() == []
    folder.authority.issue("cb-1", hosts=HOSTS, rotate=True)
    await security_servers.reload(folder)
    await enter(servers)


async def test_a_connection_comes_back_with_the_certificate_that_lies_there_now(servers: Secured) -> None:
    folder = servers.folder
    bus = await servers.bus("operator")
    folder.write(folder.plan(), rotate=False)
    before = (folder.path / "tls/callboard.operator.pem").read_bytes()
    folder.authority.issue("callboard.operator", rotate=True)
    assert (folder.path / "tls/callboard.operator.pem").read_bytes() != before
    # a new authority signs both sides; the old one's certificates are worth nothing to the server any more
    folder.authority.ensure(rotate=True)
    folder.authority.issue("cb-1", hosts=HOSTS, rotate=True)
    folder.authority.issue("callboard.operator", rotate=True)
    await security_servers.reload(folder)
    returned: list[bool] = []
    bus.on_reconnect(lambda: returned.append(True))
    await bus.reconnect()
    await eventually(lambda: bool(returned), within_s=15)
    assert await bus.stream_names() == []


async def test_plaintext_is_closed(servers: Secured) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", servers.folder.plan().servers[0].port)
    assert b'"tls_required":true' in await reader.readline()
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_server_without_tls_is_not_talked_to_in_the_clear(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(planned(has_tls=False))
    servers = await Secured(folder).start()
    try:
        with pytest.raises(BusConnectError, match="nothing was sent to it"):
            await enter(servers, nats__url=folder.plan().url.replace("nats:", "tls:"))
        ca = Folder(tmp_path / "ca")
        ca.write(planned())
        with pytest.raises(BusConnectError, match="nothing was sent to it"):
            await enter(servers, nats__tls_ca_file=ca.path / "tls/ca.pem")
    finally:
        await servers.close()


async def test_no_server_at_all_is_another_error(servers: Secured) -> None:
    with pytest.raises(BusConnectError):
        await enter(servers, nats__url="tls://127.0.0.1:1")


async def test_the_strictest_reading_of_the_certificates_passes(servers: Secured) -> None:
    """Python 3.13 checks like this by default."""
    tls = servers.folder.path / "tls"
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(tls / "callboard.operator.pem", tls / "callboard.operator.key")
    reader, writer = await asyncio.open_connection("127.0.0.1", servers.folder.plan().servers[0].port)
    await reader.readline()
    await writer.start_tls(context, server_hostname="127.0.0.1")
    session = writer.get_extra_info("ssl_object")
    assert session.version() == "TLSv1.3"
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


async def test_an_oversize_payload_is_refused_before_it_is_sent(servers: Secured) -> None:
    bus = await servers.bus("submitter")
    with pytest.raises(PayloadTooLargeError):
        await bus.publish("cb.task.search", b"x" * (1 << 21))
