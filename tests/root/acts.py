"""Faults of the network between three servers, for the ledger of tasks and turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.chaos import cluster_faults
from tests.chaos.cluster_faults import Kind, Scene
from tests.root.net import Namespaces
from tests.root.scene import IS_LARGE

# Longer than any lease, or silence that counts as death.
CUT_S = 15.0 if IS_LARGE else 8.0
PAIR_S = 8.0 if IS_LARGE else 4.0
WEATHER_S = 20.0 if IS_LARGE else 5.0


async def leader_isolated(scene: Scene) -> float:
    """Cut the leader off from the others, both ways."""
    number = scene.servers.all.index(await scene.leader())
    return await cluster_faults.cut(scene, number, one_way=False, for_s=CUT_S)


async def minority_isolated(scene: Scene) -> float:
    """Cut a server off that leads nothing."""
    return await cluster_faults.cut(scene, await scene.follower(), one_way=False, for_s=CUT_S)


async def leader_deaf(scene: Scene) -> float:
    """Let nothing of the others reach the leader."""
    number = scene.servers.all.index(await scene.leader())
    return await cluster_faults.cut(scene, number, one_way=True, for_s=CUT_S)


async def own_server_isolated(scene: Scene) -> float:
    """Cut off the very server that the submitter is connected to; its link stays."""
    return await cluster_faults.cut(scene, seat(scene), one_way=False, for_s=CUT_S)


async def each_pair_cut(scene: Scene) -> float:
    """Cut each pair of servers from each other in turn; the third still reaches both.

    Servers pass nothing on for each other: a worker on one of the pair does not exist for those on the other.
    """
    mesh = scene.servers.mesh
    assert isinstance(mesh, Namespaces)
    at_s = time.monotonic()
    for a, b in ((0, 1), (1, 2), (0, 2)):
        await cluster_faults.healthy(scene.stage.bus)
        async with cluster_faults.unheard(scene, a, b):
            mesh.cut((a, b), (b, a))
            await asyncio.sleep(PAIR_S)
            mesh.heal()
    return at_s


def weather(name: str, begin: Callable[[], None], end: Callable[[], None], *, for_s: float = WEATHER_S) -> Kind:
    """Return a fault that lasts a while and takes nobody away: packets late, twice, lost, or a narrow link."""

    async def act(scene: Scene) -> float:
        at_s = time.monotonic()
        begin()
        await asyncio.sleep(for_s)
        end()
        return at_s

    return Kind(name=name, act=act)


def seat(scene: Scene) -> int:
    """Return the number of the server that the submitter is connected to."""
    url = scene.stage.bus.server.url
    return next(n for n, server in enumerate(scene.servers.all) if server.url.removeprefix("nats://") in url)
