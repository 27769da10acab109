"""Ourselves, as `callboard worker start` runs a worker."""

from __future__ import annotations

from typing import Any

from bench.peers.stores import JetStreamPeer, on_jetstream

_RECOVERY = "lease of 4 s (default), extended while the worker lives, so that long tasks run once"


class Callboard(JetStreamPeer):
    """This project."""

    name = "callboard"
    packages = ("callboard", "nats-py")
    worker = "1 process, 64 at once, one event loop"
    result = "a record in a stream, with every task"
    has_venv = False
    variants = on_jetstream(_RECOVERY)

    def worker_command(self, python: str) -> list[str]:
        """Start one from the command line."""
        return [python, "-m", "callboard", "worker", "start", self.module, "--log-level", "error"]

    def environment(self, told: dict[str, Any]) -> dict[str, str]:
        """Tell the command line where the server is."""
        return {"CALLBOARD_NATS__URL": told["url"]}
