"""What may happen to three servers: one function for each fault, and what must be healthy again before the next."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from msgspec import Struct

from callboard.runtime import roster, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError
from tests.chaos.fleet import Fleet
from tests.chaos.stage import Stage
from tests.support.cluster import Servers
from tests.support.eventually import eventually
from tests.support.server import NatsServer

FREEZE_S = 8.0
AWAY_S = 6.0
CUT_S = 15.0
APART_S = 3.0
HEALTHY_WITHIN_S = 60.0
STREAMS = (subjects.WORK, subjects.LEDGER, subjects.ACTORS)


class Scene(Struct, frozen=True):
    """Whom a fault may harm: the servers, and the workers of tasks and of turns."""

    stage: Stage
    tasks: Fleet
    turns: Fleet

    @property
    def servers(self) -> Servers:
        """The servers."""
        return self.stage.servers

    async def leader(self) -> NatsServer:
        """Return the server that leads the streams; ``gather`` has put them together."""
        return await self.servers.victim(self.stage.bus)

    async def follower(self) -> int:
        """Return the number of a server that leads nothing."""
        return (self.servers.all.index(await self.leader()) + 1) % len(self.servers.all)


Act = Callable[[Scene], Awaitable[float]]


class Kind(Struct, frozen=True, kw_only=True):
    """A fault.

    Attributes:
        act: Injects it, to its end; returns when it began, in monotonic seconds.
        redelivers: Whether work must come again: a run without would have tested nothing.
    """

    name: str
    act: Act
    redelivers: bool = False


async def nothing(_: Scene) -> float:
    """Harm nobody: the control of the rows that say "tested nothing"."""
    return time.monotonic()


async def leader_killed(scene: Scene) -> float:
    """End the leader as a crash does, and start it on its store."""
    server = await scene.leader()
    at_s = time.monotonic()
    await server.restart()
    return at_s


async def leader_and_workers_killed(scene: Scene) -> float:
    """End the leader and a worker of each kind in one moment; others come a second later."""
    server = await scene.leader()
    at_s = time.monotonic()
    server.kill()
    for fleet in (scene.tasks, scene.turns):
        fleet.kill(fleet.alive[0])
    await server.start()
    await asyncio.gather(scene.tasks.start(), scene.turns.start(has_actors=True))
    return at_s


async def leader_frozen(scene: Scene) -> float:
    """Stop the leader's process for eight seconds."""
    server = await scene.leader()
    at_s = time.monotonic()
    server.pause()
    await asyncio.sleep(FREEZE_S)
    server.resume()
    return at_s


async def leader_away(scene: Scene) -> float:
    """Leave the leader dead for longer than a lease lasts."""
    server = await scene.leader()
    at_s = time.monotonic()
    server.kill()
    await asyncio.sleep(AWAY_S)
    await server.start()
    return at_s


async def stepped_down(scene: Scene) -> float:
    """Have every stream take another leader."""
    at_s = time.monotonic()
    for stream in STREAMS:
        await _api(scene.stage.bus, f"STREAM.LEADER.STEPDOWN.{stream}")
    return at_s


async def all_killed(scene: Scene) -> float:
    """End all servers in one moment, and start them."""
    at_s = time.monotonic()
    for server in scene.servers.all:
        server.kill()
    await scene.servers.start()
    return at_s


async def all_away(scene: Scene) -> float:
    """Leave all servers dead for longer than a lease lasts, while work runs that is longer still."""
    at_s = time.monotonic()
    for server in scene.servers.all:
        server.kill()
    await asyncio.sleep(AWAY_S)
    await scene.servers.start()
    return at_s


async def rolled(scene: Scene) -> float:
    """Restart one after the other in good order, as an upgrade does: each when the one before is healthy again."""
    at_s = time.monotonic()
    for server in scene.servers.all:
        server.stop()
        await server.start()
        await asyncio.sleep(APART_S)
        await healthy(scene.stage.bus)
    return at_s


async def leader_isolated(scene: Scene) -> float:
    """Cut the leader off from the others, both ways; its clients stay."""
    return await cut(scene, scene.servers.all.index(await scene.leader()), one_way=False)


async def follower_isolated(scene: Scene) -> float:
    """Cut a minority off that leads nothing."""
    return await cut(scene, await scene.follower(), one_way=False)


async def leader_deaf(scene: Scene) -> float:
    """Let nothing reach the leader, a partition of one way."""
    return await cut(scene, scene.servers.all.index(await scene.leader()), one_way=True)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="leader killed", act=leader_killed),
        Kind(name="leader and workers killed", act=leader_and_workers_killed, redelivers=True),
        Kind(name="leader frozen 8 s", act=leader_frozen, redelivers=True),
        Kind(name="stepdown", act=stepped_down),
        Kind(name="all killed", act=all_killed, redelivers=True),
        Kind(name="all away 6 s", act=all_away, redelivers=True),
        Kind(name="leader away 6 s", act=leader_away),
        Kind(name="rolling restart", act=rolled),
        Kind(name="leader isolated", act=leader_isolated, redelivers=True),
        Kind(name="minority isolated", act=follower_isolated),
        Kind(name="leader deaf (one way)", act=leader_deaf, redelivers=True),
    )
}


async def healthy(bus: Bus) -> None:
    """Wait until every stream has a leader whose two followers are current."""

    async def is_whole() -> bool:
        try:
            return all([await _is_whole(bus, stream) for stream in STREAMS])
        except (BusError, ValueError):
            return False

    await eventually(is_whole, within_s=HEALTHY_WITHIN_S, what="three current copies of each stream", every_s=0.25)


async def gather(bus: Bus, servers: Servers) -> None:
    """Bring the leaders of all streams to one server: the one whose loss hurts most."""
    wanted = f"cb{servers.all.index(await servers.victim(bus))}"

    async def are_together() -> bool:
        try:
            apart = [stream for stream in STREAMS if await _leader(bus, stream) != wanted]
            for stream in apart:
                await _api(bus, f"STREAM.LEADER.STEPDOWN.{stream}", {"placement": {"preferred": wanted}})
        except (BusError, ValueError):
            return False
        return not apart

    await eventually(are_together, within_s=HEALTHY_WITHIN_S, what="the leaders at one server", every_s=0.5)


async def cut(scene: Scene, number: int, *, one_way: bool, for_s: float = CUT_S) -> float:
    """Cut a server off from the others for a while, both ways or so that it is deaf; its clients stay."""
    mesh = scene.servers.mesh
    assert mesh is not None, "this fault needs doors on the routes"
    async with unheard(scene, number) as at_s:
        (mesh.deafen if one_way else mesh.isolate)(number)
        await asyncio.sleep(for_s)
        mesh.heal()
    return at_s


@contextlib.asynccontextmanager
async def unheard(scene: Scene, *numbers: int) -> AsyncIterator[float]:
    """Count the workers on these servers as cut off for as long as the block lasts; give when it began.

    A worker lives as long as its beats reach the cluster: those on a server that is cut off do not.
    """
    servers = {f"cb{number}" for number in numbers}
    lonely = {beat.pid for beat in await roster.live_workers(scene.stage.bus) if beat.server in servers}
    at_s = time.monotonic()
    cut = [(fleet, w) for fleet in (scene.tasks, scene.turns) for w in fleet.alive if w.pid in lonely]
    for fleet, worker in cut:
        fleet.cut_off(worker, at_s)
    try:
        yield at_s
    finally:
        for fleet, worker in cut:
            fleet.thaw(worker)


async def _leader(bus: Bus, stream: str) -> str:
    info = await bus.stream_info(stream)
    return (info.leader or "") if info is not None else ""


async def _is_whole(bus: Bus, stream: str) -> bool:
    cluster = (await _api(bus, f"STREAM.INFO.{stream}")).get("cluster")
    if not isinstance(cluster, dict) or not cluster.get("leader"):
        return False
    replicas = cluster.get("replicas") or []
    return len(replicas) == 2 and all(each.get("current") and not each.get("offline") for each in replicas)


async def _api(bus: Bus, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
    answer = await bus.request(f"$JS.API.{path}", json.dumps(body).encode() if body else b"", timeout_s=2.0)
    found: dict[str, object] = json.loads(answer.data)
    return found
