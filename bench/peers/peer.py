"""What the bench must know of a peer.

To add one: a `Peer` in ``systems``, a module of the same name in ``apps`` that runs in the peer's venv (tasks that call
`apps.side.note`, a `Sender` handed to `apps.side.send`), a pinned list in ``requirements``, a line in ``catalog``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

from msgspec import Struct


class PeerUnavailableError(Exception):
    """A peer cannot be installed or started here; the text becomes its row."""


class Variant(Struct, frozen=True, kw_only=True):
    """One way to run a peer; a row of the report.

    Attributes:
        key: Short name, unique within the peer; ``--peers celery:always`` chooses one.
        durability: When a submitted task is on disk, in words for the table.
        recovery: The setting that decides when a dead worker's task is handed out again, in words for the table.
        strength: For comparing rows: 2 on disk before it is confirmed, 1 written within seconds or minutes, 0 in
            memory only. We claim to be first among rows of at least our strength alone.
        options: What the peer's own modules need to know.
    """

    key: str
    durability: str
    recovery: str
    strength: int
    options: dict[str, Any] = {}


class Peer(ABC):
    """A system under test.

    Attributes:
        name: Also the module of ``apps`` and the file of ``requirements`` (dashes become underscores).
        packages: Distributions whose versions the report prints.
        variants: Rows, at least one.
        worker: How a worker is set, in words for the table.
        result: What a peer stores of a finished task, in words for the table.
        cannot: Measures that it cannot be asked for (keys of `result.MEASURES`), each with the reason.
        has_venv: False for ourselves: our own interpreter is taken.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    variants: ClassVar[tuple[Variant, ...]]
    worker: ClassVar[str]
    result: ClassVar[str]
    cannot: ClassVar[dict[str, str]] = {}
    has_venv: ClassVar[bool] = True

    @abstractmethod
    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start the peer's server for the block, empty; return what its processes must be told (``url``, ...).

        Raises:
            PeerUnavailableError: If it is not on this machine, with what to install.
        """

    def worker_command(self, python: str) -> list[str]:
        """Return the command of a worker, as the peer's documentation starts one."""
        return [python, "-m", self.module, "work"]

    def sender_command(self, python: str) -> list[str]:
        """Return the command of the sender, which ends in `apps.side.send`."""
        return [python, "-m", self.module, "send"]

    def environment(self, told: dict[str, Any]) -> dict[str, str]:  # noqa: ARG002 - for peers that need more
        """Return further environment variables of workers and sender."""
        return {}

    def server_version(self) -> str:
        """Return name and version of the server; "" for none."""
        return ""

    @property
    def module(self) -> str:
        """The module that runs in the peer's environment."""
        return f"bench.peers.apps.{self.name.replace('-', '_')}"
