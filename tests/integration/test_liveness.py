"""Who is alive, seen through a real server by a worker with a keeper and a pinger of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callboard.runtime import subjects
from callboard.runtime.actor.liveness import Liveness
from callboard.runtime.actor.pinger import Pinger
from callboard.runtime.beat import decode_beat
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.control import Accusation, decode_death
from callboard.runtime.processes import DeathNotice, ProcessGroup, RestartPolicy
from tests.support.eventually import eventually
from tests.support.keeper_main import keeper_of
from tests.support.proxy import MuteProxy
from tests.support.server import NatsServer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
WITHIN_S = 5.0


class Observer:
    """A worker that lives in the test's process and watches the others.

    Attributes:
        beats: Times at which beats of each worker came.
        dead: Workers that were ever declared dead, with the time.
        naively_dead: The same by the rule "three seconds without a beat".
    """

    def __init__(self, me: str) -> None:
        self.me = me
        self.seen = Liveness(me, now_s=SYSTEM_CLOCK.monotonic())
        self.beats: dict[str, list[float]] = {}
        self.dead: dict[str, float] = {}
        self.naively_dead: dict[str, float] = {}
        self.reconnects = 0

    def on_beat(self, message: Message) -> None:
        beat = decode_beat(message.data)
        now_s = SYSTEM_CLOCK.monotonic()
        self.beats.setdefault(beat.worker, []).append(now_s)
        self.seen.heard(beat.worker, now_s, server=beat.server, host=beat.host, pid=beat.pid)

    def on_death(self, message: Message) -> None:
        report, now_s = decode_death(message.data), SYSTEM_CLOCK.monotonic()
        if isinstance(report, Accusation):
            self.seen.accused(report.worker, now_s)
        else:
            self.seen.ended(report.host, report.pid, now_s)

    def on_reconnect(self) -> None:
        self.reconnects += 1
        self.seen.reconnected(SYSTEM_CLOCK.monotonic())

    async def look(self) -> None:
        while True:
            now_s = SYSTEM_CLOCK.monotonic()
            for worker, beats in self.beats.items():
                if self.seen.is_dead(worker, now_s):
                    self.dead.setdefault(worker, now_s)
                if now_s - beats[-1] >= 3.0:
                    self.naively_dead.setdefault(worker, now_s)
            await SYSTEM_CLOCK.sleep(0.01)

    async def knows(self, *workers: str) -> None:
        """Wait until the workers' beats name their server: then a ping that nobody hears means most."""

        def known() -> bool:
            peers = self.seen._peers
            return all(worker in peers and peers[worker].server for worker in workers) and bool(self.seen._server)

        await eventually(known, within_s=10)


@asynccontextmanager
async def observing(url: str, me: str = "me", *, pings: bool = True) -> AsyncIterator[Observer]:
    observer = Observer(me)
    bus, keeper_bus = await connect(url, name=me), await connect(url, name=f"{me}-keeper")
    bus.on_reconnect(observer.on_reconnect)
    await bus.subscribe(subjects.BEAT_ALL, observer.on_beat)
    await bus.subscribe(subjects.CTL_DEAD, observer.on_death)
    tasks = [
        asyncio.create_task(keeper_of(me).serve(keeper_bus, stop=lambda: False)),
        asyncio.create_task(observer.look()),
    ]
    if pings:
        tasks.append(asyncio.create_task(Pinger(bus, observer.seen, me=me).run()))
    try:
        yield observer
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bus.close()
        await keeper_bus.close()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that only show life: by the server's address and a name."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.keeper_main", *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT))
        return started[-1]

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def test_a_killed_process_is_noticed_by_pings_and_the_accused_are_looked_at(
    nats_server: NatsServer, start: Start
) -> None:
    victim = start(nats_server.url, "w")
    # in the ring a, m, w only m pings w; a learns of it by m's word
    async with observing(nats_server.url, "a") as far, observing(nats_server.url, "m") as near:
        await near.knows("a", "w")
        await far.knows("m", "w")
        killed_s = SYSTEM_CLOCK.monotonic()
        victim.kill()
        victim.wait()
        await eventually(lambda: "w" in near.dead and "w" in far.dead, within_s=WITHIN_S)
        heard_s = near.beats["w"][-1]
        # shown with -s; how fast it is depends on the machine
        print(f"dead after {near.dead['w'] - killed_s:.2f} s, and by word {far.dead['w'] - killed_s:.2f} s")  # noqa: T201
        # by its beats alone it could not have been seen yet
        assert near.dead["w"] < heard_s + 3.0
        assert far.dead["w"] < heard_s + 3.0
        assert set(near.dead) == set(far.dead) == {"w"}


async def test_a_stopped_process_is_noticed_by_its_beats_and_revives(nats_server: NatsServer, start: Start) -> None:
    victim = start(nats_server.url, "w")
    async with observing(nats_server.url) as observer:
        await observer.knows("w")
        victim.send_signal(signal.SIGSTOP)
        await eventually(lambda: "w" in observer.dead, within_s=WITHIN_S)
        # its socket stands and its pings time out, which is no evidence
        assert observer.dead["w"] >= observer.beats["w"][-1] + 2.9
        victim.send_signal(signal.SIGCONT)
        await eventually(lambda: "w" in observer.seen.live(SYSTEM_CLOCK.monotonic()), within_s=WITHIN_S)


async def test_a_server_that_dies_and_comes_back_is_nobody_s_death(nats_server: NatsServer, start: Start) -> None:
    workers = ["v", "w"]
    for worker in workers:
        start(nats_server.url, worker)
    async with observing(nats_server.url) as observer:
        await observer.knows(*workers)
        nats_server.kill()
        # long enough for the naive rule to be wrong, which is the negative control
        await eventually(lambda: set(observer.naively_dead) >= set(workers), within_s=WITHIN_S)
        assert not observer.dead
        await nats_server.start()
        await eventually(lambda: observer.reconnects, within_s=WITHIN_S)
        counts = {worker: len(observer.beats[worker]) for worker in workers}
        # beyond the amnesty
        await eventually(
            lambda: all(len(observer.beats[worker]) >= counts[worker] + 6 for worker in workers), within_s=15
        )
        assert not observer.dead
        assert observer.seen.live(SYSTEM_CLOCK.monotonic()) == {"me", *workers}


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
async def test_short_outages_one_after_the_other_are_nobody_s_death(
    nats_server: NatsServer, start: Start, pause_s: float
) -> None:
    start(nats_server.url, "w")
    async with observing(nats_server.url) as observer:
        await observer.knows("w")
        for number in range(3):
            await nats_server.restart()
            await eventually(lambda: observer.reconnects > number, within_s=WITHIN_S)  # noqa: B023 - awaited here
            beats = len(observer.beats["w"]) + (2 if pause_s else 0)
            await eventually(lambda: len(observer.beats["w"]) > beats, within_s=WITHIN_S)  # noqa: B023 - as above
        assert not observer.dead


async def test_a_worker_whose_beats_do_not_come_back_leaves_its_server(nats_server: NatsServer, start: Start) -> None:
    proxy = await MuteProxy(nats_server.port).start()
    try:
        start(proxy.url, "w")
        async with observing(nats_server.url) as observer:
            await observer.knows("w")
            before = proxy.connections
            proxy.mute()
            await eventually(lambda: proxy.connections > before, within_s=WITHIN_S)
            beats = len(observer.beats["w"])
            await eventually(lambda: len(observer.beats["w"]) > beats + 1, within_s=WITHIN_S)
            assert not observer.dead
    finally:
        await proxy.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _server_hangs(make_server: Callable[..., NatsServer], start: Start, *more: str) -> Observer:
    """Freeze the server of ``w`` while ``me`` sits on another one that is linked to it; return what ``me`` saw."""
    port, leaf_port = _free_port(), _free_port()
    hub = await make_server(more=f'leafnodes {{ host: "127.0.0.1", port: {port} }}').start()
    leaf = make_server(more=f'leafnodes {{ remotes: [{{ url: "nats-leaf://127.0.0.1:{port}" }}] }}')
    leaf.port = leaf_port
    start(f"{hub.url},{leaf.url}", "w", *more)
    async with observing(hub.url, "probe") as probing:
        # while there is no other server it can only be on this one
        await probing.knows("w")
    await leaf.start()
    async with observing(leaf.url) as observer:
        await observer.knows("w")
        before = len(observer.beats["w"])
        hub.pause()
        try:
            # it leaves the frozen server in any case, by the client's own pings at the latest
            await eventually(lambda: len(observer.beats["w"]) > before + 1, within_s=20)
        finally:
            hub.resume()
    return observer


async def test_a_worker_leaves_a_hung_server_before_others_take_it_for_dead(
    make_server: Callable[..., NatsServer], start: Start
) -> None:
    observer = await _server_hangs(make_server, start)
    assert "w" not in observer.dead


async def test_without_its_echo_it_would_be_taken_for_dead(
    make_server: Callable[..., NatsServer], start: Start
) -> None:
    """Negative control."""
    observer = await _server_hangs(make_server, start, "", "1000")
    assert "w" in observer.dead


async def test_a_parent_s_word_is_faster_than_any_ping(nats_server: NatsServer) -> None:
    buses: list[Bus] = []

    async def join(name: str) -> Bus:
        buses.append(await connect(nats_server.url, name=name))
        return buses[-1]

    notice = DeathNotice(join)
    group = ProcessGroup(
        lambda slot, fd: [sys.executable, "-m", "tests.support.keeper_main", nats_server.url, f"w{slot}", str(fd)],
        count=1,
        stop_grace_s=5,
        # the next one is not started before the test has seen the end of this one
        policy=RestartPolicy(base_s=30, max_s=30),
        takes_signals=False,
        on_death=notice.tell,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        task = asyncio.create_task(group.run())
        try:
            async with observing(nats_server.url, pings=False) as observer:
                await observer.knows("w0")
                process = group.children[0].process
                assert process is not None
                killed_s = SYSTEM_CLOCK.monotonic()
                process.kill()
                await eventually(lambda: "w0" in observer.dead, within_s=WITHIN_S)
                print(f"dead after {observer.dead['w0'] - killed_s:.3f} s by its parent's word")  # noqa: T201
                # no ping was sent, and its beats were too young
                assert observer.dead["w0"] < observer.beats["w0"][-1] + 2.9
        finally:
            group.stop()
            await task
            await notice.close()
