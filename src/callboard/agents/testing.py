"""Contract kits: classes of tests for buses, models, sandboxes and agents of your own. They need pytest(-asyncio).

A class of tests inherits one and gives ``make``. Callboard's own adapters are tested by the same classes.
"""

from __future__ import annotations

import sys

import pytest

for _name in ("callboard.agents.contract", "callboard.runtime.contract"):
    # before they are imported: a failed assert then shows what it compared
    if _name not in sys.modules:
        pytest.register_assert_rewrite(_name)

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
