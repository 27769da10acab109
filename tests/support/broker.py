"""A broker under test, whichever it is."""

from __future__ import annotations

from callboard.runtime.contract.broker import LOG, ONCE, WORK, Broker, Hands, cas, fill, hands, work_queue

__all__ = ["LOG", "ONCE", "WORK", "Broker", "Hands", "cas", "fill", "hands", "work_queue"]
