"""Probes get a plain answer, strangers get no detail, and no client can hold the server up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from unittest.mock import patch

import pytest

from callboard.runtime import health, metrics
from callboard.runtime.errors import PortInUseError
from callboard.runtime.health import Health, HealthServer
from callboard.runtime.stats import PoolStats


class State:
    """What the process under test says of itself."""

    def __init__(self) -> None:
        self.live = Health(is_ok=True)
        self.ready = Health(is_ok=True)
        self.stats = PoolStats()
        self.port = 0

    def tell_ready(self) -> Health:
        if "boom" in self.ready.reasons:
            message = "the check broke"
            raise RuntimeError(message)
        return self.ready

    def view(self) -> metrics.WorkerView:
        pool = metrics.PoolView(capability="search", slots=4, running=1, waiting_commit=0, backlog=0, stats=self.stats)
        return metrics.WorkerView(worker="w1", pools=(pool,))

    async def raw(self, data: bytes, *, eof: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()

    async def get(self, target: str, *, method: str = "GET") -> tuple[int, bytes]:
        answer = await self.raw(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


@pytest.fixture
async def state() -> AsyncIterator[State]:
    found = State()
    server = HealthServer(
        live=lambda: found.live,
        ready=found.tell_ready,
        metrics=lambda: metrics.render(found.view),
        request_timeout_s=0.2,
    )
    found.port = await server.start()
    yield found
    await server.close()
    await server.close()


async def test_a_healthy_process_says_so(state: State) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        assert await state.get(path) == (200, b'{"status": "ok"}\n')


async def test_a_process_that_lost_the_broker_is_alive_and_not_ready(state: State) -> None:
    state.ready = Health(False, ("no fetch for 12 s",))
    assert (await state.get("/livez"))[0] == 200
    assert await state.get("/readyz") == (503, b'{"status": "unavailable"}\n')


async def test_started_means_was_ready_once(state: State) -> None:
    state.ready = Health(is_ok=False)
    assert (await state.get("/startupz"))[0] == 503
    state.ready = Health(is_ok=True)
    assert (await state.get("/startupz"))[0] == 200
    state.ready = Health(is_ok=False)
    assert (await state.get("/startupz"))[0] == 200


async def test_reasons_are_told_on_loopback_only(state: State) -> None:
    state.ready = Health(is_ok=False, reasons=("no fetch for 12 s",))
    status, body = await state.get("/readyz?verbose")
    assert (status, json.loads(body)["reasons"]) == (503, ["no fetch for 12 s"])
    with patch.object(health, "_is_loopback", return_value=False):
        assert await state.get("/readyz?verbose") == (503, b'{"status": "unavailable"}\n')


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        (("127.0.0.1", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("10.0.0.1", 1), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        (("::ffff:10.0.0.1", 1, 0, 0), False),
        (None, False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(peer: object, is_local: bool) -> None:
    class Writer:
        def get_extra_info(self, _name: str) -> object:
            return peer

    assert health._is_loopback(Writer()) is is_local  # type: ignore[arg-type]  # only the peer is asked for


async def test_metrics_are_served(state: State) -> None:
    state.stats.endings["completed"] = 3
    status, body = await state.get("/metrics")
    assert status == 200
    assert b'callboard_tasks_completed_total{capability="search",worker="w1"} 3.0' in body


async def test_head_has_no_body_and_the_same_status(state: State) -> None:
    assert await state.get("/livez", method="HEAD") == (200, b"")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /nowhere HTTP/1.1", 404),
        ("GET //[ HTTP/1.1", 400),
        ("POST /livez HTTP/1.1", 405),
        ("GET /livez", 400),
        ("GET  /livez HTTP/1.1", 400),
        ("GET livez HTTP/1.1", 400),
        ("GET /livez HTTP/2.0", 400),
        ("", 400),
        ("\x16\x03\x01\x00", 400),
    ],
)
async def test_a_bad_request_is_answered_with_its_fault(state: State, request_line: str, status: int) -> None:
    answer = await state.raw(request_line.encode() + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_an_oversize_request_is_refused(state: State) -> None:
    answer = await state.raw(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_client_that_goes_silent_is_timed_out(state: State) -> None:
    assert (await state.raw(b"GET /livez HT")).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_hangs_up_early_is_answered(state: State) -> None:
    assert (await state.raw(b"GET /livez HT", eof=True)).startswith(b"HTTP/1.1 400 ")


async def test_a_check_that_breaks_is_a_500_and_the_server_lives_on(state: State) -> None:
    state.ready = Health(is_ok=False, reasons=("boom",))
    assert (await state.get("/readyz"))[0] == 500
    assert (await state.get("/livez"))[0] == 200


async def test_a_crowd_of_silent_clients_leaves_room_again(state: State) -> None:
    crowd = [await asyncio.open_connection("127.0.0.1", state.port) for _ in range(health.MAX_CONNECTIONS + 8)]
    for reader, writer in crowd:
        await _quietly(reader.read)
        writer.close()
    assert (await state.get("/livez"))[0] == 200


async def _quietly(read: Callable[[], object]) -> None:
    """Read to the end; a client beyond the limit is reset."""
    try:
        await read()  # type: ignore[misc]  # StreamReader.read
    except ConnectionError:
        return


async def test_a_taken_port_is_named(state: State) -> None:
    second = HealthServer(live=lambda: state.live, ready=lambda: state.ready, metrics=lambda: b"")
    with pytest.raises(PortInUseError) as caught:
        await second.start(port=state.port)
    assert caught.value.port == state.port


async def test_closing_cuts_open_connections(state: State) -> None:
    server = HealthServer(live=lambda: state.live, ready=lambda: state.ready, metrics=lambda: b"")
    port = await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await server.close()
    await _quietly(reader.read)
    writer.close()
