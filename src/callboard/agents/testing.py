"""Contract kits: classes of tests for buses, models, sandboxes and agents of your own. They need pytest(-asyncio).

A class of tests inherits one and gives ``make``. Callboard's own adapters are tested by the same classes.
"""

from __future__ import annotations

import pytest

# before they are imported: a failed assert then shows what it compared
pytest.register_assert_rewrite("callboard.agents.contract", "callboard.runtime.contract")

from callboard.agents.contract.agent import AgentContract  # noqa: E402 - as above
from callboard.agents.contract.model import (  # noqa: E402
    AskingModelContract,
    ModelContract,
    Part,
    ToldModelContract,
)
from callboard.agents.contract.sandbox import SandboxContract  # noqa: E402
from callboard.runtime.contract.bus import BusContract, Connect  # noqa: E402

__all__ = [
    "AgentContract",
    "AskingModelContract",
    "BusContract",
    "Connect",
    "ModelContract",
    "Part",
    "SandboxContract",
    "ToldModelContract",
]
