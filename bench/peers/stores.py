"""The stores that several peers keep their tasks in: one server and one set of durabilities for all of them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant


def on_jetstream(recovery: str) -> tuple[Variant, ...]:
    """Return a row for each sync mode of the broker; ``recovery`` as in ``Variant``."""
    return (
        Variant(
            key="default",
            durability="stream on disk, synced every 2 min (nats-server's default)",
            recovery=recovery,
            strength=1,
            options={"sync": "default"},
        ),
        Variant(
            key="always",
            durability="stream on disk, synced before every answer (sync_interval: always)",
            recovery=recovery,
            strength=2,
            options={"sync": "always"},
        ),
    )


def on_postgres(recovery: str, *, more: str = "") -> tuple[Variant, ...]:
    """Return a row with every commit synced and one with none; ``more`` is said after the first one's durability."""
    return (
        Variant(
            key="fsync-on",
            durability=f"Postgres, every commit synced (its default){more}",
            recovery=recovery,
            strength=2,
        ),
        Variant(
            key="fsync-off",
            durability="Postgres, written but never synced by itself (fsync=off): the system's loss may ruin it",
            recovery=recovery,
            strength=1,
            options={"settings": ["fsync=off"]},
        ),
    )


class JetStreamPeer(Peer):
    """A peer whose tasks wait in a stream."""

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a nats-server; the sender makes the streams."""
        return servers.nats(variant.options["sync"], folder)

    def server_version(self) -> str:
        """Return the broker's."""
        return servers.nats_version()


class PostgresPeer(Peer):
    """A peer whose tasks are rows of a table."""

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Postgres."""
        return servers.postgres(folder, settings=variant.options.get("settings", ()))

    def server_version(self) -> str:
        """Return Postgres's."""
        return servers.version("postgres", package="postgresql")
