"""The C client of the benches: it does its work against a real server, and stops with a reason at whatever is not."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from bench import rows_ceiling
from callboard.runtime import subjects
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.client import Client
from callboard.runtime.config import TopologySettings
from tests.support.server import NatsServer

HELLO = b'INFO {"server_id":"x","max_payload":1048576}\r\n'
PONG = b"PONG\r\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the client, compiled with checks of every bound where the compiler has them."""
    try:
        return rows_ceiling.compiled(tmp_path_factory.mktemp("checked"), more=("-fsanitize=address,undefined",))
    except rows_ceiling.NoCompilerError as error:
        pytest.skip(str(error))
    except RuntimeError:
        return rows_ceiling.compiled(tmp_path_factory.mktemp("plain"))


def _run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


async def test_it_stores_takes_records_and_acks_what_it_says(program: Path, tmp_path: Path) -> None:
    server = await NatsServer(tmp_path / "server").start()
    bus = await jetstream.connect(server.url, name="test")
    small = TopologySettings(queue_max_bytes=1 << 26, ledger_max_bytes=1 << 26, audit_max_bytes=1 << 26)
    try:
        await apply(bus, await plan(bus, declared(small, capabilities=("hello",))))
        consumer = f"{subjects.WORK}.hello-normal"
        for way in ("work", "batch"):
            assert _run(program, "publish", server.port, "cb.task.hello", 300, 50, 64).returncode == 0
            done = _run(program, way, server.port, consumer, 300, 20, 400, f"cb.result.{way}")
            assert json.loads(done.stdout)["count"] == 300, done.stderr
        await Client(bus).submit("hello", "one more")
        assert _run(program, "pull", server.port, consumer, 1, 1).returncode == 0
        work, ledger = await bus.stream_info(subjects.WORK), await bus.stream_info(subjects.LEDGER)
        assert work is not None
        assert ledger is not None
        assert (work.messages, ledger.messages) == (0, 600)
        assert json.loads(_run(program, "ask", server.port, "echo", 50).stdout)["p50_us"] > 0
        refused = _run(program, "publish", server.port, "nobody.stores.this", 1, 1, 64)
        assert refused.returncode == 1
        assert "not stored" in refused.stderr
    finally:
        await bus.close()
        server.stop()


@pytest.mark.parametrize(
    "sent",
    [
        b"MSG a 1 -5\r\n",
        b"MSG a 1 99999999999999999999\r\n",
        b"MSG " + b"a" * 600 + b" 1 2\r\nxx\r\n",
        b"MSG a b c d e f g h 1\r\n",
        b"MSG\x20\r\n",
        b"HMSG a 1 50 2\r\nxx\r\n",
        b"MSG _CEILING.1 1 2\r\nxx\r\n",
        b"x" * 8192,
        b"-ERR 'no'\r\n",
        b"",
    ],
)
def test_a_server_that_talks_nonsense_ends_it_with_a_reason(program: Path, sent: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.sendall(HELLO + PONG + sent)
                link.shutdown(socket.SHUT_WR)
                while link.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        done = _run(program, "publish", listener.getsockname()[1], "a", 10, 2, 16)
        thread.join()
    assert (done.returncode, done.stderr.startswith("ceiling: ")) == (1, True), done.stderr


@pytest.mark.parametrize(
    "words",
    [(), ("ask", 0, "a", 1), ("ask", 70000, "a", 1), ("pull", 4222, "a", "1x", 1), ("publish", 4222, "a", 1, 5000, 1)],
)
def test_words_that_make_no_sense_are_named(program: Path, words: tuple[object, ...]) -> None:
    done = _run(program, *words)
    assert (done.returncode, done.stderr.startswith("ceiling: ")) == (1, True), done.stderr
