"""Ways to log in at a real server, as the settings say them; and no word to one without TLS where it is demanded."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callboard.runtime.bus.base import Bus, StreamConfig
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.config import Settings
from callboard.runtime.errors import BusAuthError, BusConnectError, CallboardError, ConfigError, MissingExtraError
from callboard.runtime.host import connector
from tests.support.eventually import eventually
from tests.support.server import NatsServer

PASSWORD = "hunter2"
LOGIN = f"authorization {{ user: me, password: {PASSWORD} }}"
Make = Callable[..., NatsServer]


@pytest.fixture
def nkeys() -> Any:  # noqa: ANN401 - a package that is not always there
    return pytest.importorskip("nkeys", reason="the extra 'nkeys' is not installed")


async def open_bus(server: NatsServer, folder: Path, **env: str) -> Bus:
    """Connect as a worker or a command would with these variables."""
    path = folder / "callboard.yaml"
    path.write_text("nats: {connect_deadline_s: 20}\n")
    variables = {f"CALLBOARD_NATS__{name}": value for name, value in env.items()}
    return await connector(Settings.load(file=path, env={"CALLBOARD_NATS__URL": server.url, **variables}))("test")


async def works(bus: Bus, server: NatsServer) -> None:
    """Use a bus, before and after its server was started anew."""
    await bus.create_stream(StreamConfig(name="A", subjects=("a",)))
    server.kill()
    await server.start()
    await bus.flush()
    assert await bus.stream_info("A") is not None
    await bus.close()


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def command(server: NatsServer, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that needs the server."""
    variables = {f"CALLBOARD_NATS__{name}": value for name, value in env.items()}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    return subprocess.run(
        [sys.executable, "-m", "callboard", "provision", "--plan", "--json", "--nats", server.url],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_user_and_password_of_the_settings_let_in(make_server: Make, tmp_path: Path) -> None:
    server = await make_server(more=LOGIN).start()
    secret = written(tmp_path / "password", f"{PASSWORD}\n")
    await works(await open_bus(server, tmp_path, USER="me", PASSWORD_FILE=secret), server)
    with pytest.raises(BusAuthError):
        await open_bus(server, tmp_path, USER="me", PASSWORD="wrong")
    found = await asyncio.to_thread(command, server, USER="me", PASSWORD=PASSWORD)
    # 1: there is something to provision
    assert (found.returncode, found.stderr) == (1, "")
    assert json.loads(found.stdout)["changes"]
    refused = await asyncio.to_thread(command, server, USER="me", PASSWORD="wrong")
    assert (refused.returncode, "error[bus_auth]" in refused.stderr, refused.stdout) == (3, True, "")


async def test_an_nkey_lets_in(make_server: Make, tmp_path: Path, nkeys: Any) -> None:  # noqa: ANN401 - as above
    seed, public = _pair(nkeys, nkeys.PREFIX_BYTE_USER)
    server = await make_server(more=f"authorization {{ users: [ {{ nkey: {public} }} ] }}").start()
    path = written(tmp_path / "user.nk", f"{seed}\n")
    await works(await open_bus(server, tmp_path, NKEY_SEED_FILE=path), server)
    other = written(tmp_path / "other.nk", _pair(nkeys, nkeys.PREFIX_BYTE_USER)[0])
    with pytest.raises(BusAuthError) as caught:
        await open_bus(server, tmp_path, NKEY_SEED_FILE=other)
    assert (tmp_path / "other.nk").read_text() not in "".join(traceback.format_exception(caught.value))
    found = await asyncio.to_thread(command, server, NKEY_SEED_FILE=path)
    assert (found.returncode, found.stderr) == (1, "")
    refused = await asyncio.to_thread(command, server, NKEY_SEED_FILE=other)
    assert (refused.returncode, "error[bus_auth]" in refused.stderr) == (3, True)


async def test_a_credentials_file_lets_in(make_server: Make, tmp_path: Path, nkeys: Any) -> None:  # noqa: ANN401
    operator_seed, operator = _pair(nkeys, nkeys.PREFIX_BYTE_OPERATOR)
    account_seed, account = _pair(nkeys, nkeys.PREFIX_BYTE_ACCOUNT)
    _, system = _pair(nkeys, nkeys.PREFIX_BYTE_ACCOUNT)
    user_seed, user = _pair(nkeys, nkeys.PREFIX_BYTE_USER)
    room = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    free = {"subs": -1, "data": -1, "payload": -1}
    limits = free | room | {"imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": True}
    trusted = _jwt(nkeys, operator_seed, operator, operator, {"type": "operator"})
    tenant = _jwt(nkeys, operator_seed, operator, account, {"type": "account", "limits": limits})
    within = _jwt(
        nkeys, operator_seed, operator, system, {"type": "account", "limits": limits | dict.fromkeys(room, 0)}
    )
    badge = _jwt(nkeys, account_seed, account, user, {"type": "user", **free})
    known = f"resolver: MEMORY\nresolver_preload: {{ {account}: {tenant}\n{system}: {within} }}"
    more = f"operator: {trusted}\nsystem_account: {system}\n{known}"
    server = await make_server(more=more).start()
    lines = ["-----BEGIN NATS USER JWT-----", badge, "------END NATS USER JWT------", ""]
    lines += ["-----BEGIN USER NKEY SEED-----", user_seed, "------END USER NKEY SEED------", ""]
    path = written(tmp_path / "me.creds", "\n".join(lines))
    await works(await open_bus(server, tmp_path, CREDS_FILE=path), server)
    with pytest.raises(BusAuthError):
        await open_bus(server, tmp_path, USER="me", PASSWORD="wrong")


async def test_without_the_package_for_nkeys_its_name_is_told(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    path = written(tmp_path / "user.nk", "SU" + "A" * 56)
    with pytest.raises(MissingExtraError, match=r"pip install 'callboard\[nkeys\]'"):
        await open_bus(nats_server, tmp_path, NKEY_SEED_FILE=path)


@pytest.mark.parametrize("text", ["", "nonsense", "SA" + "A" * 56, "UA" + "A" * 54, "SU" + "A" * 40])
async def test_a_file_that_holds_no_seed_is_told_at_once(nats_server: NatsServer, tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "user.nk", text)
    with pytest.raises(ConfigError, match="begins with SU") as caught:
        await open_bus(nats_server, tmp_path, NKEY_SEED_FILE=path)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("name", ["NKEY_SEED_FILE", "CREDS_FILE"])
async def test_a_file_that_is_not_there_is_told_at_once(nats_server: NatsServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"none\.such.*cannot be read"):
        await open_bus(nats_server, tmp_path, **{name: str(tmp_path / "none.such")})


# --- tls:// is a demand


async def test_a_server_that_speaks_no_tls_is_refused_where_the_url_demands_it(nats_server: NatsServer) -> None:
    with pytest.raises(BusConnectError, match=r"does not speak TLS.*nothing was sent"):
        await connect(nats_server.url.replace("nats:", "tls:"), name="test", connect_deadline_s=0.5)
    # negative control: nothing else is wrong with it
    bus = await connect(nats_server.url, name="test", connect_deadline_s=5)
    await bus.close()


class Pretender:
    """Says that it is a server, without TLS, and writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.visitors = 0
        self._server: asyncio.Server | None = None

    async def open(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visitors += 1
        info = '{"server_id":"X","version":"2.15.1","headers":true,"max_payload":1048576,"nonce":"bm9uY2U"}'
        writer.write(f"INFO {info}\r\n".encode())
        self.said.append(await reader.read(4096))
        writer.close()


@pytest.mark.parametrize("who", ["nobody", "token", "user", "nkey"])
async def test_nothing_at_all_is_said_in_the_clear_where_tls_is_demanded(
    who: str, request: pytest.FixtureRequest
) -> None:
    options: dict[str, Any] = {"nobody": {}, "token": {"token": "s3cret"}}.get(
        who, {"user": "me", "password": PASSWORD}
    )
    if who == "nkey":
        found = request.getfixturevalue("nkeys")
        options = {"nkey_seed": _pair(found, found.PREFIX_BYTE_USER)[0]}
    pretender = Pretender()
    address = f"127.0.0.1:{await pretender.open()}"
    try:
        with pytest.raises(BusConnectError, match="does not speak TLS"):
            await connect(f"tls://{address}", name="test", connect_deadline_s=0.5, **options)
        assert pretender.visitors
        assert not any(pretender.said)
        # negative control: it does hear what is said without TLS
        with pytest.raises(CallboardError):
            await connect(f"nats://{address}", name="test", connect_deadline_s=0.5, **options)
        assert any(text.startswith(b"CONNECT") for text in pretender.said)
    finally:
        await pretender.close()


async def test_a_reconnect_says_nothing_in_the_clear_either(make_server: Make, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = await make_server(more=f'tls {{ cert_file: "{cert}", key_file: "{key}" }}').start()
    bus = await connect(server.url.replace("nats:", "tls:"), name="test", tls_ca=str(cert))
    server.kill()
    pretender = Pretender()
    await pretender.open(server.port)
    try:
        await eventually(lambda: pretender.visitors >= 3, within_s=20)
        assert not bus.is_connected
        assert not any(pretender.said)
    finally:
        await pretender.close()
    await server.start()
    await bus.flush()
    await bus.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    extensions = (
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "basicConstraints=critical,CA:TRUE",
        "keyUsage=keyCertSign,digitalSignature",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
    )
    added = [word for extension in extensions for word in ("-addext", extension)]
    subprocess.run(
        [*make, "-subj", "/CN=localhost", *added, "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert, key


# --- keys and badges as NATS writes them


def _pair(nkeys: Any, kind: int) -> tuple[str, str]:  # noqa: ANN401 - as above
    """Return a new seed and its public key."""
    seed = nkeys.encode_seed(os.urandom(32), kind)
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


def _jwt(nkeys: Any, seed: str, issuer: str, subject: str, nats: dict[str, object]) -> str:  # noqa: ANN401
    """Return claims about ``subject``, signed with ``seed`` by ``issuer``."""
    claims = {"jti": "x", "iat": 1, "iss": issuer, "sub": subject, "name": "test", "nats": {**nats, "version": 2}}
    parts = [_text({"typ": "JWT", "alg": "ed25519-nkey"}), _text(claims)]
    signature = nkeys.from_seed(bytearray(seed.encode())).sign(".".join(parts).encode())
    return ".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=").decode()])


def _text(value: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
