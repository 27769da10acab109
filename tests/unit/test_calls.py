"""Calls wait for the answers that are owed to them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_link import Link, Raw
from callboard.runtime.clock import SYSTEM_CLOCK


async def test_a_call_of_no_questions_is_answered_at_once() -> None:
    """A turn that begins again without a recorded step asks the leader for none: it must not wait for a timeout."""
    link = cast(Link, SimpleNamespace(base="_INBOX.x", loop=asyncio.get_running_loop(), clock=SYSTEM_CLOCK))
    calls: Calls[Raw] = Calls(link, "a", lambda raw, _: raw, is_jetstream=True)
    call = calls.open((), 3600.0)
    assert call.done.done()
    assert await calls.wait(call) == []
    assert calls.waiting_since() is None
    call = calls.open(("a",), 3600.0)
    assert not call.done.done()
    calls.forget(call)
