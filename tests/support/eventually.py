"""Waiting in tests: for something to become true, never for a time."""

from __future__ import annotations

from callboard.runtime.contract.eventually import POLL_S, eventually

__all__ = ["POLL_S", "eventually"]
