"""The other workers that host actors, as their beats tell: which types, in which version, and with what code."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from callboard.runtime import events, logs
from callboard.runtime.actor import placement
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.beat import ActorLoad, Beat

_log = logs.get_logger(__name__)
ONE_CODE = "deploy one code to all of them; raise the class's version where states or messages changed"


class Code(Struct, frozen=True):
    """What a host has of a type: version of the state's layout, and fingerprint of handlers and state."""

    version: int
    fingerprint: str


class Host(Struct, frozen=True):
    """Another worker that hosts actors, by its latest beat."""

    types: Mapping[str, Code]
    is_draining: bool


class Fleet:
    """Who else hosts what. Hosts with the newest version of a type's state share its partitions, others have none."""

    def __init__(self, worker: str) -> None:
        """Know nobody yet; ``worker`` is our own name."""
        self._worker = worker
        self._hosts: dict[str, Host] = {}
        self._told: set[tuple[str, str]] = set()

    def heard(self, beat: Beat, types: Mapping[str, ActorType]) -> bool:
        """Take in another worker's beat; return whether it says something new."""
        found = {load.kind: Code(load.version, load.fingerprint) for load in beat.actors}
        host = Host(found, beat.status == "draining")
        if self._hosts.get(beat.worker) == host:
            return False
        self._hosts[beat.worker] = host
        for name, code in found.items():
            self._compare(beat.worker, types.get(name), code)
        return True

    def left(self, worker: str) -> None:
        """Forget a worker."""
        self._hosts.pop(worker, None)

    def stays(self, worker: str) -> bool:
        """Return whether another worker is there and does not drain."""
        host = self._hosts.get(worker)
        return host is not None and not host.is_draining

    def candidates(self, kind: ActorType, live: Collection[str]) -> set[str]:
        """Return the hosts of a type, of those that live, with the newest version of its state; we may be one.

        The others are forgotten; a beat brings one back.
        """
        self._hosts = {worker: host for worker, host in self._hosts.items() if worker in live}
        versions = {
            worker: host.types[kind.name].version
            for worker, host in self._hosts.items()
            if not host.is_draining and kind.name in host.types
        }
        versions[self._worker] = kind.version
        newest = max(versions.values())
        return {worker for worker, version in versions.items() if version == newest}

    def heir(self, kind: ActorType, number: int, live: Collection[str]) -> str | None:
        """Return the other host that a partition likes best, None when there is none."""
        hosts = self.candidates(kind, live) - {self._worker}
        return placement.owner_of(kind.name, number, sorted(hosts)) if hosts else None

    def _compare(self, worker: str, ours: ActorType | None, theirs: Code) -> None:
        """Warn, once for each, of other code under the same version: turns would differ from host to host."""
        if ours is None or theirs.version != ours.version or theirs.fingerprint == ours.fingerprint:
            return
        if (ours.name, theirs.fingerprint) in self._told:
            return
        self._told.add((ours.name, theirs.fingerprint))
        _log.warning(
            events.CODE_DIFFERED,
            type=ours.name,
            version=ours.version,
            worker=self._worker,
            fingerprint=ours.fingerprint,
            other_worker=worker,
            other_fingerprint=theirs.fingerprint,
        )


def mixture(kind: str, codes: Mapping[str, Collection[str]]) -> str:
    """Return, for people, what ``differing`` found of one type."""
    hosts = "; ".join(f"{code} on {', '.join(workers)}" for code, workers in codes.items())
    return f"the actor type {kind} runs with {len(codes)} different codes of one version: {hosts}"


def differing(beats: Collection[Beat]) -> dict[str, dict[str, list[str]]]:
    """Return the types that hosts have in several codes of the newest version, with the workers of each fingerprint."""
    loads: list[tuple[str, ActorLoad]] = [(beat.worker, load) for beat in beats for load in beat.actors]
    found: dict[str, dict[str, list[str]]] = {}
    for kind in sorted({load.kind for _, load in loads}):
        newest = max(load.version for _, load in loads if load.kind == kind)
        codes: dict[str, list[str]] = {}
        for worker, load in loads:
            if load.kind == kind and load.version == newest:
                codes.setdefault(load.fingerprint, []).append(worker)
        if len(codes) > 1:
            found[kind] = {code: sorted(workers) for code, workers in sorted(codes.items())}
    return found
