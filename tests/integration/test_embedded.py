from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard.runtime import embedded
from callboard.runtime.bus.base import StreamConfig, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.config import ServerSettings
from callboard.runtime.embedded import EmbeddedServer
from callboard.runtime.errors import DataFolderInUseError, PortInUseError, ServerBinaryError, ServerStartError
from callboard.runtime.server_folder import DataFolder, running

OWNER = """
import asyncio, sys
from pathlib import Path
from callboard.runtime.config import ServerSettings
from callboard.runtime.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(ServerSettings(data_dir=Path(sys.argv[1]), port=0))
    await server.start()
    print(server.state.pid, flush=True)
    if sys.argv[2] == "wait":
        await asyncio.Event().wait()

asyncio.run(main())
"""


def settings(folder: Path, **more: object) -> ServerSettings:
    return ServerSettings.model_validate({"data_dir": folder, "port": 0, "profile": "fast", **more})


def owner(folder: Path, what: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OWNER, str(folder), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)


def started_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    with process.stdout:
        return int(process.stdout.readline())


def is_alive(pid: int) -> bool:
    try:
        # A zombie that nobody has reaped yet is dead as well.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def fetch(url: str) -> bytes:
    def read() -> bytes:
        with urllib.request.urlopen(url) as answer:
            body: bytes = answer.read()
            return body

    return await asyncio.to_thread(read)


async def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the death of a stranger's child has no event
            await asyncio.sleep(0.02)


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    for turn in range(2):
        async with EmbeddedServer(settings(tmp_path)) as server:
            bus = await connect(server.url, name="embedded-test")
            if turn == 0:
                await bus.create_stream(StreamConfig(name="S", subjects=("s",)))
                await bus.store(Write("s", b"kept"))
            info = await bus.stream_info("S")
            await bus.close()
            assert info is not None
            assert info.messages == 1


async def test_others_find_it_by_its_folder_while_it_runs(tmp_path: Path) -> None:
    async with EmbeddedServer(settings(tmp_path)) as server:
        assert running(tmp_path) == server.state
        assert server.state.owner_pid == os.getpid()
        assert server.state.url == server.url
    assert running(tmp_path) is None
    assert not (tmp_path / "server.json").exists()


async def test_a_second_start_on_the_folder_names_process_and_url(tmp_path: Path) -> None:
    async with EmbeddedServer(settings(tmp_path)) as server:
        with pytest.raises(DataFolderInUseError) as caught:
            await EmbeddedServer(settings(tmp_path)).start()
        assert f"process {os.getpid()} at {server.url} (server process {server.state.pid})" in str(caught.value)
        assert running(tmp_path) == server.state


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for key in ("port", "http_port"):
            with pytest.raises(
                PortInUseError, match=f"port {port} on 127.0.0.1 is taken .* set server.{key}"
            ) as caught:
                await EmbeddedServer(settings(tmp_path, **{key: port})).start()
            assert caught.value.port == port
    async with EmbeddedServer(settings(tmp_path, port=port)):  # the failed starts gave the folder back
        pass


async def test_a_free_port_that_is_lost_to_somebody_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embedded.free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], real()])
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
        monkeypatch.setattr(embedded, "check_port", lambda _port, setting: None)
        monkeypatch.setattr(embedded, "_CONNECT_TIMEOUT_S", 0.1)
        async with EmbeddedServer(settings(tmp_path)) as server:
            assert server.url != f"nats://127.0.0.1:{taken.getsockname()[1]}"


async def test_nothing_is_left_behind_when_the_owner_is_killed(tmp_path: Path) -> None:
    process = owner(tmp_path, "wait")
    pid = started_pid(process)
    assert is_alive(pid)
    process.kill()
    process.wait()
    # At once: the server may still be on its way out; its folder is taken over when it is gone.
    async with EmbeddedServer(settings(tmp_path)) as server:
        assert not is_alive(pid)
        assert running(tmp_path) == server.state


async def test_nothing_is_left_behind_when_the_owner_forgets_to_stop(tmp_path: Path) -> None:
    process = owner(tmp_path, "exit")
    pid = started_pid(process)
    assert process.wait() == 0
    assert not is_alive(pid)
    assert running(tmp_path) is None


async def test_an_interrupt_from_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    process = owner(tmp_path, "wait")
    pid = started_pid(process)
    assert os.getsid(pid) == pid != os.getsid(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    await eventually(lambda: not is_alive(pid))


async def test_the_death_of_the_server_is_noticed(tmp_path: Path) -> None:
    async with EmbeddedServer(settings(tmp_path)) as server:
        os.kill(server.state.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            assert await server.wait() == -signal.SIGKILL


async def test_a_server_that_hangs_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    server = EmbeddedServer(settings(tmp_path, stop_grace_s=0.2))
    pid = (await server.start()).pid
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    await server.stop()
    assert not is_alive(pid)


async def test_a_failed_start_tells_what_the_server_said(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo nats-server: v2.15.1 && exit\necho 'no such luck' >&2\nexit 3\n"
    )
    broken.chmod(0o755)
    with pytest.raises(ServerStartError, match=r"ended with status 3 .*\nno such luck$"):
        await EmbeddedServer(settings(tmp_path / "data", binary=broken)).start()
    async with EmbeddedServer(settings(tmp_path / "data")):
        pass


async def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    slow = tmp_path / "nats-server"
    slow.write_text('#!/bin/sh\n[ "$1" = --version ] && echo nats-server: v2.15.1 && exit\nexec sleep 60\n')
    slow.chmod(0o755)
    with pytest.raises(ServerStartError, match=r"did not get ready within 0.3 s; it said:\n\(it said nothing\)"):
        await EmbeddedServer(settings(tmp_path / "data", binary=slow, start_deadline_s=0.3)).start()


async def test_a_bad_binary_or_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ServerBinaryError):
        await EmbeddedServer(settings(tmp_path / "data", binary=tmp_path / "none")).start()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ServerStartError, match="cannot be used"):
        await EmbeddedServer(settings(tmp_path / "file")).start()


async def test_the_address_needs_a_started_server(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="is not started"):
        _ = EmbeddedServer(settings(tmp_path)).url


async def test_monitoring_listens_when_asked(tmp_path: Path) -> None:
    port = embedded.free_port()
    async with EmbeddedServer(settings(tmp_path, http_port=port)) as server:
        assert server.state.http_url == f"http://127.0.0.1:{port}"
        assert json.loads(await fetch(f"{server.state.http_url}/healthz")) == {"status": "ok"}


@pytest.mark.parametrize("profile", ["durable", "fast"])
async def test_the_server_understands_how_to_sync(tmp_path: Path, profile: str) -> None:
    port = embedded.free_port()
    async with EmbeddedServer(settings(tmp_path, http_port=port, profile=profile)) as server:
        config = json.loads(await fetch(f"{server.state.http_url}/jsz?config=true"))["config"]
    assert config.get("sync_always", False) == (profile == "durable")
    if profile == "fast":
        assert config["sync_interval"] == 120 * 10**9
    assert "invalid use" not in DataFolder(tmp_path).tail()


async def test_a_folder_with_an_odd_name_works(tmp_path: Path) -> None:
    async with EmbeddedServer(settings(tmp_path / 'an "odd" \\ näme')) as server:
        assert server.url
