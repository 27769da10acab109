"""A worker that is developed while it runs: new code takes over from the next message on, broken code never."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from callboard.runtime import host
from callboard.runtime.actor.definition import ActorType, with_companions
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import Settings
from callboard.runtime.errors import CallboardError, ConfigError
from callboard.runtime.loader import Parts, Skipped, load_parts
from callboard.runtime.reload import Reloader, Sources
from callboard.runtime.worker import Worker


class Told(Protocol):
    """Who hears how the development goes."""

    def ready(self, worker: Worker, parts: Parts) -> None:
        """A worker serves ``parts``; called again after names were added or removed, with another worker."""
        ...

    def reloaded(self, files: list[Path]) -> None:
        """These files changed and their new code is used."""
        ...

    def failed(self, files: list[Path], error: CallboardError) -> None:
        """These files changed and cannot be used; the code before them goes on."""
        ...

    def skipped(self, part: Skipped) -> None:
        """A file of a folder, or an entry point, cannot be used; everything else is served without it."""
        ...


class LiveWorker:
    """Lets a running worker go on with other code. Implements ``reload.Swappable``."""

    def __init__(self, worker: Worker, parts: Parts) -> None:
        """Take a worker that serves ``parts``."""
        self._worker = worker
        self._parts = parts

    def fits(self, parts: Parts) -> bool:
        """Return whether ``parts`` have the names that the worker serves; others take another worker."""
        return parts.names == self._parts.names

    def swap(self, parts: Parts, /) -> None:
        """Use ``parts`` from the next message on; what runs finishes with the code it began with.

        Raises:
            ConfigError: If the names are not those that the worker serves.
            ActorDefinitionError: If an actor's class cannot be used; nothing has changed then.
        """
        if not self.fits(parts):
            message = "capabilities or actors were added or removed: that takes a new worker"
            raise ConfigError(message)
        types = checked(parts)
        for capability in parts.capabilities:
            pool = self._worker.pools.get(capability.name)
            if pool is not None:
                for each in pool.share or [pool]:
                    name = each.capability.name
                    each.capability = capability if name == capability.name else capability.renamed(name)
                    each.slots = capability.concurrency or self._worker.options.concurrency
        if self._worker.host is not None:
            self._worker.host.swap([kind for kind in types if kind.name in self._worker.host.types])
        self._parts = parts


def checked(parts: Parts) -> list[ActorType]:
    """Return the types of the actors in ``parts``, after a look at everything that a worker would refuse.

    Raises:
        ConfigError: If an annotation of a capability cannot be decoded into.
        ActorDefinitionError: If an actor's class cannot be used.
    """
    for capability in parts.capabilities:
        capability.prepare()
    return [ActorType.of(actor) for actor in with_companions(parts.actors)]


class Development:
    """Serves what some modules hold, and their new code whenever they change, until a signal."""

    def __init__(self, settings: Settings, targets: Sequence[str], *, told: Told, clock: Clock = SYSTEM_CLOCK) -> None:
        """Prepare.

        Args:
            settings: All settings.
            targets: Dotted modules or ``.py`` files.
            told: Who hears how it goes.
            clock: Time, for watching the files.
        """
        self._settings = settings
        self._told = told
        sources = Sources(targets, cwd=Path.cwd())
        self._targets = tuple(targets)
        self._reloader = Reloader(sources, self._load, clock=clock)
        # of folders: what could be used once is not left out when it is broken
        self._whole: frozenset[str] = frozenset()
        self._skipped: frozenset[str] = frozenset()
        self._live: LiveWorker | None = None
        self._worker: Worker | None = None
        self._next: Parts | None = None
        self._is_over = False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, as ``host.run_worker`` does.

        Raises:
            ModuleLoadError: If the modules cannot be loaded at the start.
            CallboardError: As ``host.run_worker``.
        """
        parts: Parts | None = self._reloader.load()
        watching: asyncio.Task[None] | None = None
        try:
            while parts is not None and not self._is_over:
                if watching is None:
                    watching = asyncio.create_task(self._watch(), name="reload")
                await self._serve(parts)
                parts, self._next = self._next, None
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.wait([watching])

    def _load(self) -> Parts:
        parts = load_parts(self._targets, whole=self._whole)
        self._whole = frozenset(parts.sources.values())
        said = {f"{each.name}: {each.error}": each for each in parts.skipped}
        for text in said.keys() - self._skipped:
            self._told.skipped(said[text])
        self._skipped = frozenset(said)
        return parts

    async def _watch(self) -> None:
        await self._reloader.run(self._apply, reloaded=self._told.reloaded, failed=self._told.failed)

    async def _serve(self, parts: Parts) -> None:
        def ready(worker: Worker) -> None:
            self._worker, self._live = worker, LiveWorker(worker, parts)
            self._told.ready(worker, parts)
            if self._next is not None:
                # the code changed while the worker was starting
                worker.stop()

        try:
            await host.run_worker(
                self._settings,
                parts.capabilities,
                actors=parts.actors,
                on_ready=ready,
                on_signal=self._end,
            )
        finally:
            self._worker = self._live = None

    def _end(self) -> None:
        self._is_over = True

    async def _apply(self, parts: Parts) -> None:
        host.use_retry(parts.capabilities, self._settings)
        _ = checked(parts)
        if self._live is not None and self._next is None and self._live.fits(parts):
            self._live.swap(parts)
            return
        # names came or went: the worker drains and another one begins
        self._next = parts
        if self._worker is not None:
            self._worker.stop()
