"""FastStream with NATS JetStream."""

from __future__ import annotations

from bench.peers.stores import JetStreamPeer, on_jetstream

_RECOVERY = "ack_wait 30 s (the server's default); no heartbeat, so longer tasks run twice at once"


class FastStream(JetStreamPeer):
    """Pull subscriber with durable consumer, acked after the handler."""

    name = "faststream"
    packages = ("faststream", "nats-py")
    worker = "1 process, 64 at once, fetches 64, asyncio"
    result = "nothing"
    variants = on_jetstream(_RECOVERY)

    def worker_command(self, python: str) -> list[str]:
        """Start it from its command line."""
        return [python, "-m", "faststream", "run", f"{self.module}:app"]
