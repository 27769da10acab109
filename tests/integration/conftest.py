"""Fixtures of the tests that run whole workers."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.world import Kind, World, open_world

HAS_JETSTREAM = importlib.util.find_spec("callboard.runtime.bus.jetstream") is not None


@pytest.fixture(params=["memory", "jetstream"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """The adapter under test."""
    found: Kind = request.param
    if found == "jetstream" and not HAS_JETSTREAM:
        pytest.skip("the JetStream adapter is not here yet")
    return found


@pytest.fixture
async def callboard_world(kind: Kind, tmp_path: Path) -> AsyncIterator[World]:
    """A broker with its streams, a client, and workers on demand; every test runs on both adapters."""
    async with open_world(kind, tmp_path / "server") as world:
        yield world
