"""The promises of the sandboxes that need no engine; the root tests make the third keep them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.agents.contract.sandbox import SandboxContract
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.sandbox.choose import choose
from tests.support.trial import missing


class _Here(SandboxContract):
    NAME = ""

    def make(self) -> Sandbox:
        return choose(self.NAME)

    @pytest_asyncio.fixture
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        made = self.make()
        if reason := await missing(made):
            pytest.skip(f"SKIP sandbox {self.NAME}: {reason}")
        yield made
        await made.close()


class TestSubprocess(_Here):
    NAME = "subprocess"


class TestBubblewrap(_Here):
    NAME = "bubblewrap"
