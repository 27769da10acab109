"""Servers of the root suite: on disks whose power can be cut, in namespaces; and the plans of its ledgers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import structs

from callboard.runtime import subjects
from callboard.runtime.errors import BusError
from tests.chaos import cluster_ledger
from tests.chaos.cluster_faults import Kind, Scene
from tests.chaos.fleet import ROOT
from tests.chaos.stage import Stage, jetstream, staged, store_of
from tests.root.disk import LoopDisk
from tests.root.net import Namespaces, Nodes
from tests.root.tap import TapSwitch
from tests.support.cluster import Servers
from tests.support.eventually import eventually
from tests.support.server import NatsServer

ROUTE_PORT = 6222
IS_LARGE = os.environ.get("ROOT_PLAN") == "large"
# So that the suite stays short; the large one is for the record.
_QUICK = cluster_ledger.Plan(long_s=5.0, keys=4, mail_every_s=1.5, before_s=1.5, after_s=1.5)
_LARGE = cluster_ledger.Plan(lanes=8, pace_s=0.05, keys=12, before_s=6.0, after_s=6.0)
PLAN = _LARGE if IS_LARGE else _QUICK


def limit_s(quick_s: float) -> float:
    """Return how long a test may take."""
    return quick_s * (5 if IS_LARGE else 1)


class Placed(Servers):
    """Servers that are a cluster across network namespaces."""

    def __init__(self, folder: Path, nodes: Namespaces | TapSwitch) -> None:
        """Prepare one server for each node."""
        self.mesh = nodes
        self.all = [
            NatsServer(
                folder / f"server-{number}",
                jetstream=False,
                more=f"{jetstream(store_of(folder, number))}\n{_clustered(nodes, number)}",
                host=nodes.address(number),
                launch=nodes.launch(number),
            )
            for number in range(nodes.count)
        ]


def _clustered(nodes: Nodes, number: int) -> str:
    peers = [nodes.address(n) for n in range(nodes.count) if n != number]
    urls = ", ".join(f'"nats://{peer}:{ROUTE_PORT}"' for peer in peers)
    listen = f'listen: "{nodes.address(number)}:{ROUTE_PORT}"'
    return f"server_name: cb{number}\ncluster {{ name: cb, {listen}\n  routes: [{urls}] }}"


def on_loopback(folder: Path, *, count: int, sync: str | None = "always") -> Servers:
    """Return servers on loopback that sync as told; None is the server's own default."""
    return Servers(folder, count=count, more=lambda number: jetstream(store_of(folder, number), sync=sync))


def disks(folder: Path, *, count: int = 1, kind: str = "ext4") -> list[LoopDisk]:
    """Return a disk under each server's store, not mounted yet."""
    return [LoopDisk(store_of(folder, number), kind="xfs" if kind == "xfs" else "ext4") for number in range(count)]


def lose_power(server: NatsServer, disk: LoopDisk) -> None:
    """Cut a server's power: it does nothing more, and what it has not written is gone."""
    server.pause()
    disk.cut()
    server.kill()


def power_cut(under: Mapping[NatsServer, LoopDisk], *, which: str) -> Kind:
    """Return the fault: ``which`` servers (all, leader or follower) and a worker of each kind lose power at once."""

    async def act(scene: Scene) -> float:
        leader = await scene.leader()
        chosen: Sequence[NatsServer] = scene.servers.all
        if which != "all":
            chosen = [leader if which == "leader" else scene.servers.all[await scene.follower()]]
        at_s = time.monotonic()
        for server in chosen:
            lose_power(server, under[server])
        for fleet in (scene.tasks, scene.turns):
            fleet.kill(fleet.alive[0])
        for server in chosen:
            under[server].restore()
        await asyncio.gather(*(server.start() for server in chosen))
        await asyncio.gather(scene.tasks.start(), scene.turns.start())
        return at_s

    return Kind(name=f"power cut, {which} of {len(under)}", act=act, redelivers=True)


async def keep_ledger(
    folder: Path, brokers: Servers, *kinds: Kind, plan: cluster_ledger.Plan = PLAN
) -> list[cluster_ledger.Row]:
    """Run faults on these servers under the load of tasks and turns; return two rows for each."""
    async with ledger_stage(folder, brokers) as stage:
        return await cluster_ledger.run_on(stage, structs.replace(plan, faults=kinds), folder)


def ledger_stage(folder: Path, brokers: Servers) -> contextlib.AbstractAsyncContextManager[Stage]:
    """Start these servers, with the streams and what a ledger needs."""
    # more slots than are in doubt after a restart, so that the way back is measured and not the wait for a slot
    return staged(folder, brokers=brokers, logs_claims=True, concurrency=24)


async def census(stage: Stage, *, within_s: float = 60.0) -> frozenset[str]:
    """Return the ids of the tasks that wait, when a leader is known and two looks say the same.

    A stream that is gone has none; an answer that does not come is no answer.
    """
    looks: list[frozenset[str]] = []

    async def agree() -> bool:
        try:
            info = await stage.bus.stream_info(subjects.WORK)
            if info is not None and len(stage.servers.all) > 1 and not info.leader:
                return False
            looks.append(frozenset() if info is None else frozenset(await stage.pending()))
        except BusError:
            looks.clear()
            return False
        return len(looks) > 1 and looks[-1] == looks[-2]

    await eventually(agree, within_s=within_s, what="two equal looks at the queue", every_s=1.0)
    return looks[-1]


def callboard(url: str, *words: str) -> tuple[int, dict[str, object]]:
    """Run the command line against a server; return its status and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "callboard", *words, "--json", "--nats", url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    found: dict[str, object] = json.loads(done.stdout) if done.stdout.strip() else {"said": done.stderr}
    return done.returncode, found
