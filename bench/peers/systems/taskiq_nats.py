"""taskiq with its JetStream broker."""

from __future__ import annotations

from bench.peers.stores import JetStreamPeer, on_jetstream

_RECOVERY = "ack_wait 30 s (the server's default); no heartbeat, so longer tasks run twice at once"


class TaskiqNats(JetStreamPeer):
    """Pull consumer, results in JetStream's object store."""

    name = "taskiq-nats"
    packages = ("taskiq", "taskiq-nats", "nats-py")
    worker = "2 processes, 100 at once each (its defaults), fetches 64"
    result = "an object in JetStream's object store, with every task"
    variants = on_jetstream(_RECOVERY)

    def worker_command(self, python: str) -> list[str]:
        """Start its command-line worker."""
        return [python, "-m", "taskiq", "worker", f"{self.module}:broker", "--workers", "2", "--log-level", "WARNING"]
