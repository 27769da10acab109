"""A server with the streams that docs/wire.md names, made from that page and not by Callboard's own provisioning."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from callboard.runtime.config import ServerSettings
from callboard.runtime.embedded import EmbeddedServer

Api = Callable[..., Awaitable[dict[str, Any]]]

STREAMS: tuple[dict[str, Any], ...] = (
    {
        "name": "CB_WORK",
        "subjects": ["cb.task.*", "cb.task.*.high", "cb.task.*.low"],
        "retention": "workqueue",
        "discard": "new",
    },
    {
        "name": "CB_LATER",
        "subjects": ["cb.later.>", "cb.due.*"],
        "retention": "workqueue",
        "allow_msg_schedules": True,
    },
    {
        "name": "CB_LEDGER",
        "subjects": ["cb.result.*.*", "cb.attempt.*.*.*"],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "discard_new_per_subject": True,
        "allow_direct": True,
    },
    {"name": "CB_DEAD", "subjects": ["cb.dead.>"], "allow_direct": True},
)


@pytest.fixture
async def empty_server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    settings = ServerSettings(data_dir=tmp_path / "server", port=0, profile="fast", max_file_bytes=1 << 30)
    async with EmbeddedServer(settings) as running:
        yield running


@pytest.fixture
async def raw(empty_server: EmbeddedServer) -> AsyncIterator[Client]:
    """A plain client of the server, for looking at it from outside."""
    client = await nats.connect(empty_server.url)
    yield client
    await client.close()


@pytest.fixture
def api(raw: Client) -> Api:
    async def ask(subject: str, body: object = None) -> dict[str, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        answer: dict[str, Any] = json.loads((await raw.request(f"$JS.API.{subject}", data, timeout=5)).data)
        return answer

    return ask


@pytest.fixture
async def server(empty_server: EmbeddedServer, api: Api) -> EmbeddedServer:
    for stream in STREAMS:
        answer = await api(f"STREAM.CREATE.{stream['name']}", stream)
        assert "error" not in answer, answer
    return empty_server
