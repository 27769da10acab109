"""The promises of the sandboxes that need no engine; the root tests make the third keep them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from callboard.agents.sandbox.base import Sandbox
from callboard.agents.sandbox.choose import choose
from tests.support.sandbox_contract import SandboxContract
from tests.support.trial import missing


class _Here(SandboxContract):
    NAME = ""

    @pytest_asyncio.fixture
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        made = choose(self.NAME)
        if reason := await missing(made):
            pytest.skip(f"SKIP sandbox {self.NAME}: {reason}")
        yield made
        await made.close()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        made = tmp_path / "folder"
        made.mkdir()
        return made

    @pytest.fixture
    def python(self) -> str:
        return sys.executable


class TestSubprocess(_Here):
    NAME = "subprocess"


class TestBubblewrap(_Here):
    NAME = "bubblewrap"
