"""``callboard up``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.cli.crew import Crew
    from callboard.runtime.config import Settings
    from callboard.runtime.embedded import EmbeddedServer
    from callboard.runtime.server_folder import RunningMember, RunningServer

_LOOK_S = 0.1


@click.command(
    "up",
    epilog=example(
        "callboard up",
        "callboard up --port 0 --data /tmp/callboard --profile fast",
        "callboard up --cluster 3 --data ha --workers 2 hello.py",
    ),
)
@click.argument("modules", nargs=-1, metavar="[MODULE]...")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Data folder.  [default: .callboard/data]"
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port on 127.0.0.1; 0 takes a free one; a cluster takes those behind it, too.  [default: 4222]",
)
@click.option("--http-port", type=click.IntRange(0, 65_535), help="Monitoring port; 0 is off.  [default: 0]")
@click.option(
    "--profile",
    type=click.Choice(["durable", "fast"]),
    help="durable syncs every write; fast may lose two minutes in a power cut.  [default: durable]",
)
@click.option(
    "--cluster", type=click.Choice(["3", "5"]), help="Run so many servers as a cluster; any minority may die."
)
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes that serve the MODULEs.  [default: 1]")
@click.option("--no-restart", is_flag=True, help="Leave servers of a cluster and workers that die as they are.")
@json_option
@global_options
@pass_session
def command(
    session: Session,
    /,
    *,
    modules: tuple[str, ...],
    data: Path | None,
    port: int | None,
    http_port: int | None,
    profile: str | None,
    cluster: str | None,
    workers: int | None,
    no_restart: bool,
) -> None:
    """Run a NATS server on this machine until Ctrl-C, and create the streams Callboard needs.

    The data stays in the folder and is there again at the next start. One server runs on a folder at a time. Other
    commands in this directory find it by themselves. With MODULEs (files or dotted names) workers that serve them run
    beside it. --cluster 3 runs three servers, each a process, with three copies of every stream; one that dies is
    started again, after half a second at first and ten at most, and so is a worker.
    """
    if workers and not modules:
        message = "--workers needs a MODULE for them to serve"
        raise click.UsageError(message)
    settings = session.settings(
        server__data_dir=data, server__port=port, server__http_port=http_port, server__profile=profile
    )
    up = _Up(session, settings, restarts=not no_restart)
    status = session.run(up.run(modules, servers=int(cluster or 1), workers=workers or (1 if modules else 0)))
    click.get_current_context().exit(status)


class _Up:
    """One call of the command. Implements ``cluster.Told``."""

    def __init__(self, session: Session, /, settings: Settings, *, restarts: bool) -> None:
        self._session = session
        self._settings = settings
        self._restarts = restarts
        self._stop = asyncio.Event()
        self._stops = 0

    async def run(self, modules: tuple[str, ...], *, servers: int, workers: int) -> int:
        """Serve until a signal; return the exit status."""
        import signal

        loop = asyncio.get_running_loop()
        brokers = self._cluster(servers) if servers > 1 else self._single()
        async with brokers as (state, found, server):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._signalled)
            self._tell(state)
            status = 0
            if workers:
                status = await self._serve(found, modules, workers, server)
            else:
                await self._stopped(server)
            self._note(
                "stopping the server; what it stored stays" if server else "stopping the servers; the data stays"
            )
        return status

    def _signalled(self) -> None:
        self._stop.set()
        self._stops += 1

    @asynccontextmanager
    async def _single(self) -> AsyncIterator[tuple[RunningServer, Settings, EmbeddedServer | None]]:
        from callboard.runtime.embedded import EmbeddedServer
        from callboard.runtime.errors import ServerStartError
        from callboard.runtime.host import provision_embedded
        from callboard.runtime.server_folder import DataFolder

        there = DataFolder(self._settings.server.data_dir).member_names()
        if there:
            message = (
                f"{self._settings.server.data_dir} holds the data of {len(there)} servers: go on with "
                f"`callboard up --cluster {len(there)}`, or begin in another folder (--data)"
            )
            raise ServerStartError(message)
        async with EmbeddedServer(self._settings.server) as server:
            found = _leading_to(self._settings, server.url)
            await provision_embedded(found)
            yield server.state, found, server

    @asynccontextmanager
    async def _cluster(self, count: int) -> AsyncIterator[tuple[RunningServer, Settings, EmbeddedServer | None]]:
        from callboard.runtime.cluster import EmbeddedCluster
        from callboard.runtime.host import provision_embedded

        server = self._settings.server
        async with EmbeddedCluster(server, count=count, restarts=self._restarts, told=self) as cluster:
            found = _leading_to(self._settings, cluster.state.url)
            if self._settings.origins()["topology.replicas"] == "default":
                topology = found.topology.model_copy(update={"replicas": count})
                found = found.model_copy(update={"topology": topology})
            # a cluster that has just begun needs some seconds to find its first leader
            patience_s = server.start_deadline_s
            nats = found.nats.model_copy(update={"connect_deadline_s": patience_s})
            waiting = found.model_copy(update={"nats": nats})
            await provision_embedded(waiting, store_bytes=cluster.store_bytes, patience_s=patience_s)
            yield cluster.state, found, None

    async def _serve(
        self, found: Settings, modules: tuple[str, ...], workers: int, server: EmbeddedServer | None
    ) -> int:
        """Run workers until a signal, and drain them while the servers still stand; return the exit status."""
        from callboard.cli.crew import Crew

        crew = Crew(self._session, found, modules, restarts=self._restarts)
        starting = asyncio.create_task(crew.start(workers), name="crew-start")
        stopping = asyncio.create_task(self._stopped(server), name="up-stop")
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            status = starting.result() if starting.done() else 0
            if not status:
                await stopping
                self._note("draining the workers")
            return status
        finally:
            for task in (starting, stopping):
                task.cancel()
            await self._drain(crew)

    async def _drain(self, crew: Crew) -> None:
        """Let the workers finish; at a second signal they stop at once."""
        crew.stop()
        gone = asyncio.create_task(crew.wait(), name="crew-wait")
        is_hurried = False
        while not gone.done():
            if self._stops > 1 and not is_hurried:
                is_hurried = True
                crew.stop()
            await asyncio.wait((gone,), timeout=_LOOK_S)
        gone.result()

    async def _stopped(self, server: EmbeddedServer | None) -> None:
        """Wait for a signal.

        Raises:
            ServerStartError: If a single server ends by itself before.
        """
        from callboard.runtime.errors import ServerStartError

        stopped = asyncio.create_task(self._stop.wait(), name="up-signal")
        ended = asyncio.create_task(server.wait(), name="server-wait") if server is not None else None
        try:
            waits = (stopped,) if ended is None else (stopped, ended)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if ended is not None and ended.done():
                folder = self._settings.server.data_dir
                message = f"the server ended by itself with status {ended.result()}; see {folder}/server.log"
                raise ServerStartError(message)
        finally:
            for task in (stopped, ended):
                if task is not None:
                    task.cancel()

    # --- telling

    def server_ended(self, member: RunningMember, *, status: int, delay_s: float | None) -> None:
        """Say that a server died, and what is done about it."""
        if self._session.json:
            ended = {"event": "server_ended", "name": member.name, "pid": member.pid, "status": status}
            emit(ended | {"restart_in_s": delay_s})
            return
        then = f"it is started again in {delay_s:g} s" if delay_s is not None else "it is left dead"
        self._note(f"server {member.name}, process {member.pid}, ended with status {status}; {then}")

    def server_started(self, member: RunningMember) -> None:
        """Say that it runs again."""
        if self._session.json:
            emit({"event": "server", "name": member.name, "url": member.url, "pid": member.pid})
        else:
            self._note(f"server {member.name} runs again, process {member.pid}")

    def _note(self, text: str) -> None:
        if not self._session.json:
            note(text)

    def _tell(self, state: RunningServer) -> None:
        settings = self._settings
        if self._session.json:
            ready = {"event": "ready", "url": state.url, "pid": state.pid, "http_url": state.http_url}
            servers = {"servers": state.members} if state.members else {}
            emit({**ready, "version": state.version, **servers})
            return
        where = f"data in {settings.server.data_dir}, profile {state.profile}"
        if state.members:
            click.echo(f"NATS {state.version}: {len(state.members)} servers are ready; {where}")
            for member in state.members:
                click.echo(f"  {member.name} at {member.url}, process {member.pid}")
            click.echo(f"This process, {os.getpid()}, looks after them.")
        else:
            click.echo(f"NATS {state.version} is ready at {state.url}; {where}")
        click.echo("Next, in another terminal of this folder:")
        click.echo("  callboard worker start hello.py     serve capabilities (`callboard init` writes an example)")
        click.echo("""  callboard submit hello '"world"' --wait""")
        click.echo("Ctrl-C stops it.")


def _leading_to(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"nats": settings.nats.model_copy(update={"url": url})})
